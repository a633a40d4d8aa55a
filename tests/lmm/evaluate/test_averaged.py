"""Averages in evaluate and predict: what they are of, where they are kept, what is refused."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import small
import torch
from click.testing import CliRunner
from PIL import Image

from cli.main import main
from lmm.evaluate import Evaluation, Wanted, evaluate, write_evaluation, write_masks
from lmm.evaluate.members import average_in_words
from lmm.metrics import score
from lmm.predict import load
from lmm.predict.files import predict_files
from lmm.run import Run, open_run
from lmm.settings import TrainSettings
from lmm.train import train
from pipeline.augment import draw_views, undo_views
from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
from pipeline.pixels import to_grey
from pipeline.store import open_store
from pipeline.tokenizer import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def other(small_store: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run beside the small one, of another seed."""
    path = tmp_path_factory.mktemp("other") / "other"
    settings = TrainSettings(loss="lm", epochs=2, batch_size=1, width=16, seed=1)
    train(open_store(small_store), path, settings, device=CPU)
    return open_run(path)


@pytest.fixture
def run(small_run: Run, tmp_path: Path) -> Run:
    """The small run, of the test's own."""
    return open_run(Path(shutil.copytree(small_run.path, tmp_path / "run")))


def scored(run: Run, store: str, *others: Run, **wanted: Any) -> Evaluation:
    return evaluate(run, open_store(store), "test", CPU, Wanted(**wanted), others=others)


def gms_lmm(*words: object) -> Any:
    result = CliRunner().invoke(main, [*map(str, words), "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def written(evaluation: Evaluation, folder: Path) -> tuple[bytes, bytes]:
    path = write_evaluation(evaluation, folder)
    return path.read_bytes(), path.with_suffix(".json").read_bytes()


def test_one_run_without_averaging_says_nothing_of_it(
    run: Run, small_store: str, tmp_path: Path
) -> None:
    plain = scored(run, small_store)
    assert plain.name == "small-test"
    assert not {"average", "members", "confidence", "encodes"} & plain.summary.keys()
    assert "confidence" not in plain.per_image.columns
    assert plain.greys is None
    assert average_in_words(plain.summary) == ""
    # The path of averages, taken by a run with itself, gives the very masks of the plain path.
    twice = scored(run, small_store, run)
    np.testing.assert_array_equal(twice.masks, plain.masks)
    assert twice.name.startswith("small-test-with-")
    for key in ("dsc", "iou", "hd95", "dsc_ci95", "n", "seen", "images_digest"):
        assert twice.summary[key] == plain.summary[key]
    assert written(plain, tmp_path / "a") == written(scored(run, small_store), tmp_path / "b")


def test_views_are_averaged_as_by_hand(run: Run, small_store: str, kl_folder: Path) -> None:
    store = open_store(small_store)
    evaluation = scored(run, small_store, average="views", grey=True)
    decoder = load_tokenizer(str(kl_folder)).autoencoder
    assert evaluation.greys is not None
    for row, file in zip(evaluation.per_image.to_dicts(), evaluation.greys, strict=True):
        place = store.samples["sample_id"].to_list().index(row["sample_id"])
        plan = draw_views([row["sample_id"]], store.views, store.attributes["seed"])
        means = torch.from_numpy(store.array("image_mean")[:, place]).float()
        with torch.no_grad():
            latents = run.model()(means * 0.18215)["out"] / 0.18215
            greys = to_grey(decoder.decode(latents).sample)
        weighted, weights = undo_views(greys, plan)
        mean = (weighted.sum(0) / weights.sum(0)).numpy()
        found = np.asarray(Image.open(io.BytesIO(file))) / 255
        assert np.abs(found - mean).max() < 0.6 / 255
        inside = mean > 0.5
        assert row["confidence"] == pytest.approx(
            2 * mean[inside].sum() / (mean.sum() + inside.sum()), abs=2e-3
        )
        assert row["dsc"] == pytest.approx(
            score(inside[None], store.array("mask")[0, place][None])["dsc"][0], abs=2e-2
        )
    assert evaluation.name == "small-test-views"
    summary = evaluation.summary
    assert (summary["average"], summary["looks"], summary["encodes"]) == ("views", 3, 0)
    assert average_in_words(summary) == "mean of 3 views"


def test_the_summary_tells_sureness_before_and_after(
    run: Run, other: Run, small_store: str, tmp_path: Path
) -> None:
    both = scored(run, small_store, other, average="views")
    sure = both.summary["confidence"]
    alone = [scored(one, small_store, sure=True) for one in (run, other)]
    before = [one.summary["confidence"]["ece"] for one in alone]
    assert sure["ece_alone"] == pytest.approx(np.mean(before))
    assert sure["ece"] not in before
    assert "ece_alone" not in alone[0].summary["confidence"]
    assert alone[0].name == "small-test"
    assert sure["surest_share"] == 0.8
    confidence, dsc = both.per_image["confidence"].to_numpy(), both.per_image["dsc"].to_numpy()
    surest = np.argsort(-confidence, kind="stable")[: int(np.ceil(0.8 * len(dsc)))]
    assert sure["dsc_of_surest"] == pytest.approx(dsc[surest].mean())
    assert sum(one["pixels"] for one in sure["curve"]) > 0
    assert [one["run"] for one in both.summary["members"]] == ["run", "other"]
    assert average_in_words(both.summary) == "mean of 3 views, averaged with other"
    assert written(both, tmp_path / "a") == written(
        scored(run, small_store, other, average="views"), tmp_path / "b"
    )


def test_masks_of_turns_are_those_of_predict_to_the_pixel(
    run: Run, other: Run, small_store: str, tmp_path: Path
) -> None:
    store = open_store(small_store)
    source = store.source()
    evaluation = scored(run, small_store, other, average="dihedral", native=True, grey=True)
    write_masks(evaluation, tmp_path / "evaluate")
    rows = {row["sample_id"]: row for row in source.frame.iter_rows(named=True)}
    paths = [source.image_path(rows[name]) for name in evaluation.per_image["sample_id"]]
    model = load(run, others=[other], average="dihedral", device="cpu")
    done = predict_files(model, paths, tmp_path / "predict", grey=True)
    for path in paths:
        for name in (path.name, f"grey/{path.name}"):
            ours, theirs = (np.asarray(Image.open(tmp_path / of / name)) for of in WRITTEN)
            np.testing.assert_array_equal(ours, theirs)
    assert [*done.confidence.values()] == evaluation.per_image["confidence"].to_list()
    plain = scored(run, small_store, native=True)
    assert evaluation.native != plain.native
    assert evaluation.summary["encodes"] == 8 * len(paths)
    assert evaluation.name.startswith("small-test-dihedral-with-")


WRITTEN = ("evaluate", "predict")


def test_views_of_a_new_image_are_drawn_from_its_pixels(
    small_run: Run, small_store: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        small.write_image(tmp_path / f"{name}.png", 3, 70)
    small.write_image(tmp_path / "c.png", 4, 70)
    model = load(small_run, average="views", views=3, device="cpu")
    predict_files(model, sorted(tmp_path.glob("*.png")), tmp_path / "m", grey=True)
    a, b, c = (np.asarray(Image.open(tmp_path / "m" / "grey" / f"{name}.png")) for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    plain = load(small_run, device="cpu").grey(tmp_path / "a.png")
    assert (np.rint(plain * 255).astype(np.uint8) != a).any()


def test_images_that_any_of_the_runs_has_seen_are_refused(
    run: Run, small_store: str, kl_folder: Path, tmp_path: Path
) -> None:
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    trained = open_store(small_store).samples.filter(split="test")["sample_id"]
    turned = manifest.frame.with_columns(
        split=pl.when(pl.col("sample_id").is_in(trained.implode()))
        .then(pl.lit("train"))
        .otherwise(pl.lit("val"))
    )
    url = str(tmp_path / "turned.zarr")
    frame = type(manifest)(turned, manifest.root, "turned")
    encode(frame, url, load_tokenizer(str(kl_folder)), views=1, size=small.SIZE_PX)
    settings = TrainSettings(loss="lm", epochs=1, batch_size=1, width=16)
    train(open_store(url), tmp_path / "seer", settings, device=CPU)
    seer = open_run(tmp_path / "seer")
    with pytest.raises(ArtefactError, match=r"seer has seen images of the test split.*trained on"):
        scored(run, small_store, seer)
    allowed = evaluate(run, open_store(small_store), "test", CPU, others=[seer], allow_seen=True)
    assert allowed.name.endswith("-seen")
    assert allowed.summary["seen"] == {"train": len(trained), "select": 0}


def test_an_average_is_over_the_views_that_test_has(
    run: Run, kl_folder: Path, tmp_path: Path
) -> None:
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    tokenizer = load_tokenizer(str(kl_folder))
    found = []
    for name, views in (("two", 2), ("three", 3)):
        url = str(tmp_path / f"{name}.zarr")
        encode(manifest, url, tokenizer, views=views, size=small.SIZE_PX, eval_views=2)
        wanted = Wanted(average="views")
        found.append(evaluate(run, open_store(url), "test", CPU, wanted, allow_seen=True))
    two, three = found
    assert (two.summary["looks"], three.summary["looks"]) == (2, 2)
    assert np.array_equal(two.masks, three.masks)


def test_another_data_set_may_be_all_test(
    run: Run, other: Run, kl_folder: Path, tmp_path: Path
) -> None:
    names = ("benign (41)", "benign (42)", "malignant (41)")
    root, manifest = small.write_busi(tmp_path / "raw", names), tmp_path / "m.parquet"
    words = ["ingest", root, "--layout", "busi", "--split", "0/1", "-o", manifest, "--json"]
    assert CliRunner().invoke(main, [*map(str, words)]).exit_code == 0
    url = tmp_path / "abroad.zarr"
    words = ["--tokenizer", kl_folder, "--size", small.SIZE_PX, "--views", 2]
    gms_lmm("encode", manifest, url, *words)
    average = gms_lmm(
        *("evaluate", "--run", run.path, "--run", other.path, "--latents", url),
        *("--average", "views"),
    )
    assert (average["n"], average["looks"], average["encodes"]) == (len(names), 2, 0)
    scores = pl.read_parquet(average["per_image"])
    assert set(scores["sample_id"]) == set(names)


def test_what_cannot_be_averaged_is_refused(
    run: Run, other: Run, small_store: str, kl_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a student is of one run"):
        scored(run, small_store, other, student=True)
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    url, tokenizer = str(tmp_path / "one.zarr"), load_tokenizer(str(kl_folder))
    for views in (1, 2):  # of training samples
        encode(manifest, url, tokenizer, views=views, size=small.SIZE_PX, eval_views=1)
        with pytest.raises(UsageError, match="no view beside the clean image"):
            scored(run, url, average="views")
    (description := json.loads((run.path / "run.json").read_text()))["store"]["size"] = 128
    (run.path / "run.json").write_text(json.dumps(description))
    with pytest.raises(ArtefactError, match=r"cannot be averaged: their size is 64 and 128"):
        load(other, others=[run.path], device="cpu")


def test_turns_without_the_images_say_where_they_were(
    run: Run, small_store: str, tmp_path: Path
) -> None:
    store = open_store(small_store)
    store.attributes["root"] = str(tmp_path / "gone")
    with pytest.raises(ArtefactError, match=r"its images were in .*gone, which has gone"):
        evaluate(run, store, "test", CPU, Wanted(average="dihedral"))


def test_the_commands_average_and_leave_the_plain_scores_alone(
    run: Run, other: Run, small_store: str, tmp_path: Path
) -> None:
    scores = ["evaluate", "--run", run.path, "--latents", small_store]
    gms_lmm(*scores)
    plain = {file.name: file.read_bytes() for file in (run.path / "evaluate").iterdir()}
    words = ["--average", "views", "--masks", tmp_path / "m", "--grey"]
    result = gms_lmm(*scores, *words)
    assert result["seconds"] > 0
    assert result["per_image"] == str(run.path / "evaluate" / "small-test-views.parquet")
    assert "seconds" not in json.loads((run.path / "evaluate/small-test-views.json").read_text())
    assert len([*(tmp_path / "m" / "grey").iterdir()]) == result["n"]
    gms_lmm(*scores, "--run", other.path)
    after = {file.name: file.read_bytes() for file in (run.path / "evaluate").iterdir()}
    assert len(after) == 6
    assert {name: after[name] for name in plain} == plain
    images = Path(open_store(small_store).attributes["root"]) / "benign" / "benign (1).png"
    words = ["--average", "dihedral", "--confidence", tmp_path / "c.csv", "-o", tmp_path / "p"]
    result = gms_lmm("predict", "--run", run.path, "--run", other.path, images, *words)
    assert (result["average"], result["runs"]) == ("dihedral", [str(run.path), str(other.path)])
    table = pl.read_csv(tmp_path / "c.csv")
    assert table["image"].to_list() == [str(images)]
    assert 0 <= table["confidence"][0] <= 1


def test_people_read_what_was_averaged_and_how_sure_it_is(run: Run, small_store: str) -> None:
    words = ["evaluate", "--run", str(run.path), "--latents", small_store, "--device", "cpu"]
    averaged = CliRunner().invoke(main, [*words, "--average", "views"])
    assert averaged.exit_code == 0, averaged.output
    assert "images, mean of 3 views at 64 px" in averaged.stdout
    assert "the 80% of the images that are surest: DSC " in averaged.stdout
    assert "before averaging" in averaged.stdout
    alone = CliRunner().invoke(main, [*words, "--confidence"])
    assert "calibration error of the grey maps " in alone.stdout
    assert "before averaging" not in alone.stdout
    assert "surest" not in CliRunner().invoke(main, words).stdout


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--run", "RUN", "--latents", "STORE", "--grey"],
        ["predict", "--run", "RUN", "x.png", "--views", "4"],
    ],
)
def test_options_that_say_nothing_alone_are_refused(
    words: list[str], small_run: Run, small_store: str
) -> None:
    names = {"RUN": str(small_run.path), "STORE": small_store}
    result = CliRunner().invoke(main, [names.get(word, word) for word in words])
    assert result.exit_code == 2
    assert "fix:" in result.stderr
