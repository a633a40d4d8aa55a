"""The page: self-contained, escaped, and showing the images that it says it shows."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import torch
from PIL import Image

from lmm.checkpoint import Run, import_checkpoint, open_run
from lmm.evaluate import evaluate, write_evaluation
from lmm.model import LatentMappingModel
from lmm.report import TRUTH, build_report
from lmm.settings import TrainSettings
from lmm.train import train
from pipeline.encode import encode
from pipeline.errors import ArtefactError
from pipeline.manifest import build_manifest
from pipeline.store import LatentStore, open_store
from pipeline.tokenizer import load_tokenizer

CPU = torch.device("cpu")
NASTY = "benign (7)<script>alert('x')<"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, kl_folder: Path) -> tuple[Run, LatentStore]:
    """A run on images of which one has a name that HTML would execute."""
    folder = tmp_path_factory.mktemp("report")
    names = ("benign (1)", "benign (2)", "malignant (1)", "malignant (2)")
    root = small.write_busi(folder / "raw", names)
    benign = root / "Dataset_BUSI_with_GT" / "benign"
    small.write_image(benign / f"{NASTY}.png", seed=9, height_px=70)
    Image.new("1", (80, 70), 1).save(benign / f"{NASTY}_mask.png")
    splits = folder / "splits.csv"
    rows = [(names[0], "train"), (names[2], "val"), (names[1], "test"), (names[3], "test")]
    pl.DataFrame([*rows, (NASTY, "test")], schema=["sample_id", "split"], orient="row").write_csv(
        splits
    )
    manifest = build_manifest(root, "busi", split_file=splits).manifest
    url = str(folder / "small.zarr")
    encode(manifest, url, load_tokenizer(str(kl_folder)), size=small.SIZE_PX)
    store = open_store(url)
    settings = TrainSettings(loss="lm", epochs=3, batch_size=1, width=16, val_every=1)
    train(store, folder / "run", settings, device=CPU)
    run = open_run(folder / "run")
    write_evaluation(evaluate(run, store, "test", CPU), run.path / "evaluate")
    return run, store


class Links(HTMLParser):
    """Every address and every tag of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_needs_no_other_file_and_runs_no_script(scored: tuple[Run, LatentStore]) -> None:
    page, _ = build_report([scored[0]], "test", CPU)
    links = Links()
    links.feed(page)
    assert all(address.startswith("data:") for address in links.addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "script" not in links.tags


def test_names_are_shown_as_text(scored: tuple[Run, LatentStore]) -> None:
    page, _ = build_report([scored[0]], "test", CPU)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_worst_median_and_best_are_those_of_the_scores(scored: tuple[Run, LatentStore]) -> None:
    run, store = scored
    page, _ = build_report([run], "test", CPU)
    table = pl.read_parquet(run.path / "evaluate" / f"{store.name}-test.parquet")
    ranked = table.sort("dsc", "sample_id")["sample_id"].to_list()
    shown = re.findall(r"alt=\"(\w+) test image (.*?) with both", page)
    assert [rank for rank, _ in shown] == ["worst", "median", "best"]
    for (_, name), expected in zip(shown, ranked, strict=True):
        assert name.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'") == expected


def test_the_truth_is_drawn_where_the_stored_mask_ends(scored: tuple[Run, LatentStore]) -> None:
    run, store = scored
    page, _ = build_report([run], "test", CPU)
    for content, name in re.findall(r"base64,([^\"]+)\" alt=\"\w+ test image (benign \(2\))", page):
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(content))))
        green = (picture == TRUTH).all(axis=-1)
        place = store.samples["sample_id"].to_list().index(name)
        mask = np.asarray(store.array("mask")[0, place])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        factor = len(picture) // len(mask)
        assert green.any()
        found_rows, found_columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
        assert found_rows.min() >= rows[0] * factor
        assert found_rows.max() < (rows[-1] + 1) * factor
        assert found_columns.min() >= columns[0] * factor
        assert found_columns.max() < (columns[-1] + 1) * factor


def test_the_table_quotes_the_evaluation(scored: tuple[Run, LatentStore]) -> None:
    run, store = scored
    page, numbers = build_report([run, run], "test", CPU)
    scores = json.loads((run.path / "evaluate" / f"{store.name}-test.json").read_text())
    assert page.count(f"<td>{100 * scores['dsc']:.2f}</td>") >= 2
    assert [one["dsc"] for one in numbers] == [scores["dsc"]] * 2


def test_a_run_that_was_not_scored_says_how_to_score_it(scored: tuple[Run, LatentStore]) -> None:
    with pytest.raises(ArtefactError, match="not been scored on val") as error:
        build_report([scored[0]], "val", CPU)
    assert "gms-lmm evaluate" in error.value.fix


def test_imported_weights_have_no_page(tmp_path: Path) -> None:
    torch.save({"model": LatentMappingModel(4, 16).state_dict()}, tmp_path / "w.pth")
    run = import_checkpoint(tmp_path / "w.pth", tmp_path / "run")
    with pytest.raises(ArtefactError, match="has no log"):
        build_report([run], "test", CPU)
