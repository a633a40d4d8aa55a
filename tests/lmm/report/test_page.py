"""The page: self-contained, escaped, and showing the images that it says it shows."""

import base64
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import torch
from PIL import Image

from lmm.evaluate import Wanted, evaluate, write_evaluation
from lmm.evaluate.ceiling import ceiling
from lmm.metrics import score
from lmm.model import LatentMappingModel
from lmm.report import build_report
from lmm.report.pictures import outline, ranks
from lmm.report.tables import build_rows
from lmm.run import Run, open_run
from lmm.run.authors import import_checkpoint
from lmm.settings import TrainSettings
from lmm.train import train
from pipeline.archive import build_manifest
from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
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
    """Every address, tag and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.labels: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.labels += [value or "" for name, value in attrs if name == "aria-label"]


@pytest.fixture(scope="module")
def page(scored: tuple[Run, LatentStore]) -> str:
    return build_report([scored[0]], "test")[0]


def test_the_page_needs_no_other_file(page: str) -> None:
    assert all(address.startswith(("data:", "#")) for address in Links(page).addresses)
    assert "url(" not in page
    assert "@import" not in page


def test_the_policy_allows_the_page_s_own_script_and_no_other(page: str) -> None:
    assert Links(page).tags.count("script") == 1
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy
    assert script
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert "default-src 'none'" in policy.group(1)
    assert policy.group(1).endswith(f"script-src 'sha256-{digest}'")


def test_names_are_shown_as_text(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert any(NASTY in label for label in Links(page).labels)


def test_twice_gives_the_same_page(scored: tuple[Run, LatentStore], page: str) -> None:
    assert build_report([scored[0]], "test")[0] == page


def test_worst_median_and_best_are_those_of_the_scores(scored: tuple[Run, LatentStore]) -> None:
    dsc = [0.5, 0.1, 0.9, 0.3, 0.2, 0.8, 0.4, 0.6, 1.0, 0.0, 0.7]
    table = pl.DataFrame({"sample_id": list("abcdefghijk"), "dsc": dsc})
    assert ranks(table) == {
        "worst": ["j", "b", "e"],
        "median": ["a", "g", "h"],
        "best": ["i", "c", "f"],
    }
    run, store = scored
    ranked = pl.read_parquet(run.path / "evaluate" / f"{store.name}-test.parquet").sort("dsc")
    shown = ranks(ranked)
    assert [names[0] for names in shown.values()] == ranked.sort("dsc", "sample_id")[
        "sample_id"
    ].to_list()


def test_both_contours_of_an_image_are_those_of_its_masks(
    scored: tuple[Run, LatentStore], page: str
) -> None:
    run, store = scored
    table = pl.read_parquet(run.path / "evaluate" / f"{store.name}-test.parquet")
    ids = store.samples["sample_id"].to_list()
    drawn = re.findall(r'class="truth" d="(.*?)"/><path class="prediction" d="(.*?)"', page)
    assert len(drawn) == len(table) == 3
    for (truth, prediction), row in zip(drawn, table.iter_rows(named=True), strict=True):
        assert truth == outline(np.asarray(store.array("mask")[0, ids.index(row["sample_id"])]))
        mask = np.asarray(Image.open(io.BytesIO(row["prediction_png"])))
        assert prediction == outline(mask)


def test_the_image_behind_the_contours_is_the_image(
    scored: tuple[Run, LatentStore], page: str
) -> None:
    run, store = scored
    table = pl.read_parquet(run.path / "evaluate" / f"{store.name}-test.parquet")
    contents = re.findall(r'<image [^>]*href="data:image/webp;base64,(.*?)"', page)
    for content, name in zip(contents, table["sample_id"], strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
        assert shown.size == (small.SIZE_PX, small.SIZE_PX)
        with Image.open(small.image_path(Path(store.attributes["root"]).parent, name)) as original:
            expected = original.convert("RGB").resize(shown.size, Image.Resampling.BILINEAR)
        # WebP halves the resolution of colour: compare brightness.
        difference = np.asarray(shown.convert("L"), int) - np.asarray(expected.convert("L"), int)
        assert np.abs(difference).mean() < 8


def test_the_table_quotes_the_evaluation(scored: tuple[Run, LatentStore]) -> None:
    run, store = scored
    page, numbers = build_report([run, run], "test")
    scores = json.loads((run.path / "evaluate" / f"{store.name}-test.json").read_text())
    low, high = (f"{100 * end:.2f}" for end in scores["dsc_ci95"])
    assert page.count(f"{100 * scores['dsc']:.2f}<small>{low} – {high}</small>") == 2
    assert [one["dsc"] for one in numbers] == [scores["dsc"]] * 2
    assert page.count("data:image/webp") == scores["n"]  # each image once, not once a run


def test_the_page_says_what_was_done(scored: tuple[Run, LatentStore], page: str) -> None:
    run, store = scored
    for words in (
        store.tokenizer["digest"],
        store.attributes["manifest_digest"],
        f"torch {run.description['software']['torch']}",
        f"gms-lmm train --latents {store.url}",
        "--epochs 3 --batch-size 1",
        "--seed 0",
        "loss lm",
    ):
        assert words in page
    for left_open in ("--memory-gib", "--deterministic", "--native"):
        assert left_open not in page


def test_without_the_archive_the_page_says_so_and_has_every_score(
    scored: tuple[Run, LatentStore], tmp_path: Path
) -> None:
    run, store = scored
    folder = Path(store.attributes["root"])
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    try:
        page, numbers = build_report([run], "test")
    finally:
        hidden.rename(folder)
    assert "no longer as they were ingested" in page
    assert "<image" not in page
    assert numbers[0]["otsu_dsc"] is None
    assert page.count('<th scope="row" data-value=') == 3


def test_scores_on_the_original_masks_are_a_row_of_their_own(
    scored: tuple[Run, LatentStore], tmp_path: Path
) -> None:
    run, store = scored
    copy = open_run(Path(shutil.copytree(run.path, tmp_path / "run")))
    evaluation = evaluate(copy, store, "test", CPU, Wanted(native=True))
    write_evaluation(evaluation, copy.path / "evaluate")
    page, _ = build_report([copy], "test")
    assert "original masks" in page
    assert f">{evaluation.summary['native']['hd95']:.2f}<small>" in page


def test_a_run_that_was_not_scored_says_how_to_score_it(scored: tuple[Run, LatentStore]) -> None:
    with pytest.raises(ArtefactError, match="not been scored on val") as error:
        build_report([scored[0]], "val")
    assert "gms-lmm evaluate" in error.value.fix


def test_imported_weights_have_a_page_without_training(
    scored: tuple[Run, LatentStore], tmp_path: Path
) -> None:
    _, store = scored
    torch.manual_seed(0)
    torch.save({"model": LatentMappingModel(4, 16).state_dict()}, tmp_path / "w.pth")
    run = import_checkpoint(tmp_path / "w.pth", tmp_path / "imported")
    with pytest.raises(ArtefactError, match="not been scored on test"):
        build_report([run], "test")
    evaluation = evaluate(run, store, "test", CPU)
    write_evaluation(evaluation, run.path / "evaluate")
    page, numbers = build_report([run, scored[0]], "test")
    assert numbers[0]["dsc"] == evaluation.summary["dsc"]
    assert f">{100 * evaluation.summary['dsc']:.2f}<small>" in page
    assert "not trained on" not in page
    assert "395,936 parameters" in page
    assert f"gms-lmm import-checkpoint w.pth --out {run.path}" in page
    assert page.count("<figcaption>Training loss") == page.count("gms-lmm train --latents") == 1
    assert build_rows([run], "test")[0].settings["loss"] == "imported"


def rows_of(page: str) -> list[list[str]]:
    """Cells of the table of scores as text, row by row."""
    body = re.search(r'<table class="runs">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body
    rows = re.findall(r"<tr>(.*?)</tr>", body.group(1), re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<small>.*?</small>|<[^>]*>", "", cell) for cell in row] for row in cells]


def test_the_table_holds_the_ceiling_that_one_of_the_runs_was_scored_with(
    scored: tuple[Run, LatentStore], tmp_path: Path
) -> None:
    run, store = scored
    copy = open_run(Path(shutil.copytree(run.path, tmp_path / "copy")))
    write_evaluation(
        evaluate(copy, store, "test", CPU, Wanted(ceiling=True)), copy.path / "evaluate"
    )
    page, numbers = build_report([run, copy], "test")
    found = ceiling(store, "test", CPU).summary
    rows = rows_of(page)
    assert [row[0] for row in rows] == ["run", "copy", "Ceiling", "Otsu"]
    scores = [f"{100 * found['dsc']:.2f}", f"{100 * found['iou']:.2f}", f"{found['hd95']:.2f}"]
    assert rows[2][4:] == [*scores, str(found["missed"])]
    assert page.count(f"Ceiling<small>busi, image PSNR {found['image_psnr_db']:.2f} dB<") == 1
    assert [one["ceiling_dsc"] for one in numbers] == [found["dsc"]] * 2
    assert "--ceiling</code> adds it" not in page


def test_without_a_ceiling_the_page_says_how_to_add_it(page: str) -> None:
    assert [row[0] for row in rows_of(page)] == ["run", "Otsu"]
    assert page.count("<code>gms-lmm evaluate … --ceiling</code> adds it") == 1


def test_otsu_calls_the_darker_side_of_its_own_threshold_foreground(
    scored: tuple[Run, LatentStore], page: str
) -> None:
    _, store = scored
    ids, source = store.samples["sample_id"].to_list(), store.source()
    predictions, truths = [], []
    for row in source.frame.filter(pl.col("split") == "test").iter_rows(named=True):
        with Image.open(source.image_path(row)) as image:
            resized = image.convert("RGB").resize(
                (store.size, store.size), Image.Resampling.BILINEAR
            )
        grey = np.asarray(resized).mean(axis=2)
        # Otsu's own definition: the cut that leaves the least variance within both sides.
        cuts = np.unique(grey)[:-1]
        within = [
            side.var() * side.size for cut in cuts for side in (grey[grey <= cut], grey[grey > cut])
        ]
        best = cuts[np.reshape(within, (-1, 2)).sum(axis=1).argmin()]
        predictions.append(grey <= best)
        truths.append(np.asarray(store.array("mask")[0, ids.index(row["sample_id"])]))
    expected = score(np.stack(predictions), np.stack(truths))
    otsu = rows_of(page)[-1]
    assert float(otsu[4]) == pytest.approx(100 * expected["dsc"].mean(), abs=1.5)
    assert float(otsu[5]) == pytest.approx(100 * expected["iou"].mean(), abs=1.5)


def test_a_store_that_has_changed_since_asks_for_scores_of_it_as_it_is(
    scored: tuple[Run, LatentStore], kl_folder: Path, tmp_path: Path
) -> None:
    run, _ = scored
    copy = open_run(Path(shutil.copytree(run.path, tmp_path / "run")))
    root = small.write_busi(tmp_path / "raw", ("benign (31)", "malignant (32)"))
    url, tokenizer = str(tmp_path / "small.zarr"), load_tokenizer(str(kl_folder))
    encode(small.ingest(root), url, tokenizer, size=small.SIZE_PX)
    for old in (copy.path / "evaluate").iterdir():
        old.unlink()
    write_evaluation(evaluate(copy, open_store(url), "test", CPU), copy.path / "evaluate")
    assert build_report([copy], "test")[0].count("not trained on") == 1
    small.edit_image(root, open_store(url).samples.filter(split="test")["sample_id"][0])
    encode(small.ingest(root), url, tokenizer, size=small.SIZE_PX)
    with pytest.raises(ArtefactError, match=r"small\.zarr has changed since .*run was scored"):
        build_report([copy], "test")
    again = evaluate(copy, open_store(url), "test", CPU)
    write_evaluation(again, copy.path / "evaluate")
    assert build_report([copy], "test")[1][0]["dsc"] == again.summary["dsc"]


def test_a_run_that_is_not_finished_says_how_to_go_on(
    scored: tuple[Run, LatentStore], tmp_path: Path
) -> None:
    copy = open_run(Path(shutil.copytree(scored[0].path, tmp_path / "run")))
    (copy.path / "summary.json").unlink()
    with pytest.raises(ArtefactError, match="run is not finished") as error:
        build_report([copy], "test")
    assert "--resume" in error.value.fix


def test_two_definitions_of_hd95_share_no_page(
    scored: tuple[Run, LatentStore], tmp_path: Path
) -> None:
    run, store = scored
    copy = open_run(Path(shutil.copytree(run.path, tmp_path / "copy")))
    write_evaluation(
        evaluate(copy, store, "test", CPU, Wanted(hd95="pooled")), copy.path / "evaluate"
    )
    with pytest.raises(UsageError, match="different definitions of HD95"):
        build_report([run, copy], "test")


def test_scores_on_other_samples_are_a_row_that_says_so(
    scored: tuple[Run, LatentStore], kl_folder: Path, tmp_path: Path
) -> None:
    run, _ = scored
    copy = open_run(Path(shutil.copytree(run.path, tmp_path / "run")))
    root = small.write_busi(tmp_path / "raw", ("benign (31)", "malignant (32)"))
    url = str(tmp_path / "small.zarr")
    encode(small.ingest(root), url, load_tokenizer(str(kl_folder)), size=small.SIZE_PX)
    evaluation = evaluate(copy, open_store(url), "test", CPU)
    write_evaluation(evaluation, copy.path / "evaluate")
    page, numbers = build_report([copy], "test")
    assert page.count("not trained on") == 1
    assert f">{100 * evaluation.summary['dsc']:.2f}<small>" in page
    assert [one["n"] for one in numbers] == [3]


def test_averages_are_rows_and_charts_beside_the_plain_scores(
    scored: tuple[Run, LatentStore], page: str, tmp_path: Path
) -> None:
    run, store = scored
    run = open_run(Path(shutil.copytree(run.path, tmp_path / "run")))
    averaged = evaluate(run, store, "test", CPU, Wanted(average="dihedral"))
    write_evaluation(averaged, run.path / "evaluate")
    found, numbers = build_report([run], "test")
    assert numbers[0]["dsc"] == build_report([scored[0]], "test")[1][0]["dsc"]
    words = "mean of 8 flips and turns"
    assert f"{words}</small>" in found
    assert f"DSC by confidence of the {words}" in found
    assert "before averaging" in found
    assert words not in page
    plain, average = build_rows([run], "test")
    assert "average" not in plain.settings
    assert average.settings["average"] == words
    assert average.scores["dsc"] == pytest.approx(100 * averaged.summary["dsc"])
