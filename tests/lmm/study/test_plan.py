"""The plan of a study: which runs are there already, and which are to be trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from studied import fabricated, grid_file

from lmm.settings import TrainSettings
from lmm.study import Plan, make_plan, read_grid, read_plan
from lmm.study.plan import write_plan
from lmm.study.results import collect
from lmm.train import train
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore, open_store
from pipeline.store.finish import write_receipt

SHORT = {"epochs": 1, "batch_size": 1, "loss": "lm"}
WIDTHS = {"vary": {"width": [16, 32]}, "fixed": SHORT, "baseline": {"width": 16}}


def planned(folder: Path, url: str | None, **grid: Any) -> Plan:
    return make_plan(read_grid(grid_file(folder, **grid)), folder / "study", url)


def states(plan: Plan) -> dict[str, bool]:
    return {run.name: plan.trained(run) for run in plan.runs}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, small_store: str) -> Path:
    """A study of two widths of which the narrow one has been trained; never written to."""
    folder = tmp_path_factory.mktemp("planned")
    run = planned(folder, small_store, **WIDTHS).runs[0]
    settings = TrainSettings(loss="lm", epochs=1, batch_size=1, width=16)
    path = folder / "study" / "runs" / run.name
    train(open_store(small_store), path, settings, device=torch.device("cpu"))
    return folder


@pytest.fixture
def copied(studied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(studied, tmp_path / "copied"))


NARROW, WIDE = (f"loss=lm,epochs=1,batch_size=1,width={width},s0" for width in (16, 32))


def test_a_finished_run_is_known_by_its_settings(studied: Path, small_store: str) -> None:
    assert states(planned(studied, small_store, **WIDTHS)) == {NARROW: True, WIDE: False}


@pytest.mark.parametrize(
    ("changed", "to_train"),
    [
        ({"vary": {"width": [16, 32, 48]}}, 2),
        ({"vary": {"width": [16], "lr": [2e-3, 1e-3]}}, 1),
        ({"vary": {"width": [32, 16]}}, 1),
        ({"seeds": [0, 1]}, 3),
        ({"fixed": {**SHORT, "epochs": 2}}, 2),
        ({"fixed": {**SHORT, "precision": "fp32"}}, 1),
        ({"fixed": {**SHORT, "precision": "bf16"}}, 2),
    ],
)
def test_a_changed_line_of_a_grid_trains_only_what_it_changes(
    changed: dict[str, Any], to_train: int, studied: Path, small_store: str
) -> None:
    grid = {**WIDTHS, **changed}
    if "lr" in grid["vary"]:
        grid["baseline"] = {"lr": 1e-3}
    plan = planned(studied, small_store, **grid)
    assert sum(not done for done in states(plan).values()) == to_train
    assert not plan.replaced


def test_a_run_of_what_a_store_held_before_is_trained_anew(
    copied: Path, small_store: str, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(small_store, tmp_path / "small.zarr"))
    receipt = json.loads((other / "receipt.json").read_text())
    (other / "receipt.json").write_text(json.dumps({**receipt, "arrays": {}}))
    plan = planned(copied, str(other), **WIDTHS)
    assert plan.replaced == [NARROW]
    assert not any(states(plan).values())


def test_a_damaged_run_is_trained_anew(copied: Path, small_store: str) -> None:
    (copied / "study" / "runs" / NARROW / "run.json").write_text("{")
    assert planned(copied, small_store, **WIDTHS).replaced == [NARROW]


def test_a_plan_is_read_as_it_was_written(studied: Path, small_store: str, tmp_path: Path) -> None:
    plan = make_plan(read_grid(grid_file(studied, **WIDTHS)), tmp_path, small_store)
    write_plan(plan)
    assert read_plan(tmp_path) == plan
    with pytest.raises(ArtefactError, match="is no study"):
        read_plan(tmp_path / "elsewhere")


def test_runs_of_one_store_and_one_fold_share_a_student(
    small_store: str, store_copy: Path, tmp_path: Path
) -> None:
    folded(store_copy)
    losses = {"vary": {"loss": ["lm", "seg", "compound"]}, "baseline": {"loss": "lm"}}
    plan = planned(tmp_path, small_store, **losses)
    assert [run.student is None for run in plan.runs] == [True, False, False]
    assert len({run.student for run in plan.runs[1:]}) == 1
    folds = {"vary": {**losses["vary"], "fold": [0, 1]}, "baseline": {"loss": "lm"}}
    plan = planned(tmp_path, str(store_copy), **folds)
    assert len({run.student for run in plan.runs if run.student}) == 2
    of_fold = next(run for run in plan.runs if run.student and run.fold == 1)
    assert of_fold.distill == ["--fold", "1"]


def folded(store: Path) -> None:
    """Each sample of train in one of two folds."""
    samples = pl.read_parquet(store / "samples.parquet").drop("fold", strict=False)
    number = ((pl.col("split") == "train").cum_sum() % 2).cast(pl.Int32)
    fold = pl.when(pl.col("split") == "train").then(number)
    samples.with_columns(fold=fold).write_parquet(store / "samples.parquet")


def test_folds_are_repetitions_each_scored_on_its_own(store_copy: Path, tmp_path: Path) -> None:
    folded(store_copy)
    grid = {"vary": {"width": [16, 32], "fold": [0, 1]}, "baseline": {"width": 16}}
    plan = fabricated(tmp_path, str(store_copy), seeds=[0, 1], **grid)
    assert len(plan.grid.settings) == 2
    assert len(plan.runs) == 8
    assert {tuple(run.evaluate) for run in plan.runs} == {("--split", "fold")}
    results = collect(plan)
    train_ids = open_store(str(store_copy)).samples.filter(split="train")["sample_id"]
    for _, of_seed in results.group_by("setting", "seed"):
        assert sorted(of_seed["sample_id"]) == sorted(train_ids)


def test_runs_that_test_chose_are_scored_as_seen(small_store: str, tmp_path: Path) -> None:
    grid = {"vary": {"select_on": ["val", "test"]}, "baseline": {"select_on": "val"}}
    by_val, by_test = planned(tmp_path, small_store, **grid).runs
    assert (by_val.evaluate, by_test.evaluate[-1]) == (["--split", "test"], "--allow-seen")
    assert by_test.scores == f"{by_val.scores}-seen"


def test_stores_of_other_images_or_another_size_are_refused(
    small_store: str, store_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = pl.read_parquet(store_copy / "samples.parquet")
    swapped = pl.col("split").replace({"test": "train", "train": "test"})
    samples.with_columns(swapped).write_parquet(store_copy / "samples.parquet")
    (store_copy / "receipt.json").unlink()
    write_receipt(open_store(str(store_copy)))
    grid = {
        "stores": {"a": small_store, "b": str(store_copy)},
        "vary": {"store": ["a", "b"]},
        "baseline": {"store": "a"},
    }
    with pytest.raises(ArtefactError, match="a and b hold other images in split test"):
        planned(tmp_path, None, **grid)
    sizes = property(lambda store: 32 if store.url == str(store_copy) else 64)
    monkeypatch.setattr(LatentStore, "size", sizes)
    with pytest.raises(ArtefactError, match="of two sizes, a of 64 px and b of 32 px"):
        planned(tmp_path, None, **grid)


def test_a_store_comes_from_the_grid_or_from_the_command_line(
    small_store: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="names no store"):
        planned(tmp_path, None, **WIDTHS)
    named = {"stores": {"a": small_store}, "vary": {"width": [16]}, "fixed": {"store": "a"}}
    plan = planned(tmp_path, None, **named, baseline={})
    assert plan.runs[0].name == "store=a,width=16,s0"
    with pytest.raises(UsageError, match="names its stores"):
        planned(tmp_path, small_store, **named, baseline={})


def test_settings_that_do_not_fit_the_store_are_refused_before_any_run(
    small_store: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--views 9"):
        planned(tmp_path, small_store, vary={"views": [1, 9]}, baseline={"views": 1})
    with pytest.raises(UsageError, match="there is no fold 3"):
        planned(tmp_path, small_store, vary={"fold": [3]}, baseline={})
    assert not (tmp_path / "study").exists()
