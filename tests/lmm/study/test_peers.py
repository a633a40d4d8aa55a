"""Studies with networks in pixels beside the LMM: one split, one page, and each trained once."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from chromium import Chromium
from peers import PUBLISHED
from studied import fabricated, grid_file

from lmm.baseline.pixels import ManifestImages
from lmm.baseline.settings import NETWORKS, BaselineSettings
from lmm.baseline.train import train_baseline
from lmm.run import open_run
from lmm.run.checkpoint import read_checkpoint
from lmm.study import Resources, compare_runs, format_table, make_plan, read_grid, run_study
from lmm.study.answer import write_answer
from lmm.study.charts import curves
from pipeline.errors import ArtefactError, UsageError
from pipeline.manifest import write_manifest

LMM = {"model": "lmm", "loss": "lm", "width": 16, "epochs": 2}
UNET = {"model": "unet", "epochs": 1}
FIXED = {"batch_size": 2, "precision": "fp32"}


def of_both(images: ManifestImages, **other: Any) -> dict[str, Any]:
    grid = {"manifest": images.url, "runs": [LMM, UNET], "fixed": FIXED}
    return {**grid, "baseline": {"model": "lmm"}, **other}


def test_a_network_is_trained_once_scored_beside_the_lmm_and_is_that_of_baseline_alone(
    small_store: str,
    small_manifest: ManifestImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = read_grid(grid_file(tmp_path, **of_both(small_manifest)))
    plan = make_plan(grid, tmp_path / "study", small_store)
    outcome = run_study(plan, Resources(jobs=1))
    assert outcome.failed == {}
    assert [name.split(",")[0] for name in outcome.trained] == ["model=lmm", "model=unet"]
    plan = make_plan(grid, tmp_path / "study", small_store)
    assert run_study(plan, Resources(jobs=1)).trained == []

    _, (lmm, unet) = compare_runs(plan)
    assert (lmm.label, unet.label) == ("model lmm, epochs 2", "model unet, epochs 1")
    assert unet.images == lmm.images > 0
    assert unet.difference is not None

    monkeypatch.setitem(NETWORKS, "unet", PUBLISHED["unet"])  # as the study's processes have it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = BaselineSettings(epochs=1, batch_size=2, size=64, views=3)
    train_baseline(small_manifest, tmp_path / "alone", settings, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    ours, alone = (
        read_checkpoint(folder / "best.safetensors")[0]
        for folder in (plan.out / "runs" / plan.runs[1].name, tmp_path / "alone")
    )
    assert all(torch.equal(ours[name], alone[name]) for name in alone)
    assert unet.parameters == sum(weight.numel() for weight in alone.values())


def test_epochs_that_fit_into_seconds_are_for_the_run_to_find_out(
    small_store: str, small_manifest: ManifestImages, tmp_path: Path
) -> None:
    runs = [LMM, {"model": "unet", "seconds": 1}]
    grid = read_grid(grid_file(tmp_path, **of_both(small_manifest, runs=runs)))
    plan = make_plan(grid, tmp_path / "study", small_store)
    unet = plan.runs[1]
    assert (unet.epochs, unet.student) == (None, None)
    assert unet.train[:2] == ["baseline", str(Path(small_manifest.url).resolve())]
    assert "--epochs" not in unet.train
    assert run_study(plan, Resources(jobs=1)).failed == {}
    settled = open_run(plan.out / "runs" / unet.name).description["settings"]["epochs"]
    assert settled >= 1
    assert make_plan(grid, tmp_path / "study", small_store).replaced == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"runs": [LMM, {**UNET, "loss": "lm"}]}, "unet has no setting loss"),
        ({"runs": [{**LMM, "seconds": 9}, UNET]}, "lmm has no setting seconds"),
        ({"runs": [{**LMM, "views": "fresh"}, UNET]}, "the views of a store"),
        ({"manifest": None}, "a baseline is trained on a manifest"),
    ],
)
def test_what_a_model_does_not_know_is_refused_by_name(
    changed: dict[str, Any], says: str, small_manifest: ManifestImages, tmp_path: Path
) -> None:
    grid = {k: v for k, v in of_both(small_manifest, **changed).items() if v is not None}
    with pytest.raises(UsageError) as error:
        read_grid(grid_file(tmp_path, **grid))
    assert says in str(error.value)


@pytest.mark.parametrize("swapped", [("test", "train"), ("val", "train")])
def test_a_manifest_of_another_split_is_refused(
    swapped: tuple[str, str],
    small_store: str,
    small_manifest: ManifestImages,
    tmp_path: Path,
) -> None:
    source = small_manifest.manifest
    moved = pl.col("split").replace(dict(zip(swapped, reversed(swapped), strict=True)))
    other = type(source)(source.frame.with_columns(moved), source.root, source.layout, False)
    write_manifest(other, tmp_path / "other.parquet")
    grid = of_both(small_manifest, manifest=str(tmp_path / "other.parquet"))
    with pytest.raises(ArtefactError, match=f"other images in split {', '.join(sorted(swapped))}:"):
        make_plan(read_grid(grid_file(tmp_path, **grid)), tmp_path / "study", small_store)


def test_the_page_shows_costs_and_time_and_holds_in_a_browser(
    small_store: str, small_manifest: ManifestImages, tmp_path: Path
) -> None:
    plan = fabricated(tmp_path, small_store, seeds=[0, 1], **of_both(small_manifest))
    compared = write_answer(plan)
    assert [(one.parameters, one.seconds) for one in compared] == [(1000, 60.5), (2000, 60.5)]
    head, _, *rows = format_table(plan, compared, "markdown").splitlines()
    assert head.endswith("| parameters | training s |")
    assert [row.split(" | ")[-2:] for row in rows] == [["1000", "60 |"], ["2000", "60 |"]]
    assert curves(plan)["last"] == "60"
    for name, summary in {"parameters": "parameters", "training_s": "seconds"}.items():
        lines = (plan.out / "results.csv").read_text().splitlines()
        column = lines[0].split(",").index(name)
        values = [json.loads((plan.out / run.summary_file).read_text()) for run in plan.runs[::2]]
        assert [float(line.split(",")[column]) for line in lines[1:]] == [
            round(one[summary]) for one in values
        ]
    with Chromium(tmp_path / "profile") as browser:
        for width_px in (375, 1440):
            browser.look(width_px, 900)
            browser.open(plan.out / "report.html")
            assert browser.run("document.documentElement.scrollWidth") <= width_px
            assert browser.errors() == []
        assert "60 s" in browser.run("document.querySelector('.charts').textContent")
