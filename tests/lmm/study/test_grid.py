"""Grids: what they may say is what `train` takes; names of runs are their settings."""

from dataclasses import fields
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import yaml
from studied import grid_file

from lmm.settings import TrainSettings
from lmm.study.grid import grid_schema, read_grid
from lmm.study.names import run_name
from pipeline.errors import GmsLmmError, InputError, UsageError

ROOT = Path(__file__).parents[3]
READY = sorted((ROOT / "config" / "studies").glob("*.yaml"))
LM = {"vary": {"loss": ["lm", "seg"]}, "baseline": {"loss": "lm"}}
WORKFLOW = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())["properties"]["train"]


def test_everything_that_train_takes_may_vary() -> None:
    properties = grid_schema()["properties"]
    every = {one.name for one in fields(TrainSettings)} | {"store", "model", "seconds"}
    every -= {"seed"}
    assert properties["vary"]["properties"].keys() == every
    for part in (properties["fixed"], properties["runs"]["items"], properties["baseline"]):
        assert part["properties"].keys() == every - {"fold"}


@pytest.mark.parametrize("name", WORKFLOW["properties"].keys() - {"seeds", "fold"})
def test_a_grid_allows_what_the_workflow_allows(name: str) -> None:
    said = {k: v for k, v in WORKFLOW["properties"][name].items() if k != "description"}
    ours = grid_schema()["properties"]["fixed"]["properties"][name]
    assert (ours["anyOf"][0] if name == "views" else ours) == said


@pytest.mark.parametrize("file", READY, ids=lambda file: str(file.stem))
def test_a_ready_grid_can_be_read_and_has_a_comment_on_every_line(file: Path) -> None:
    grid = read_grid(file)
    assert len(grid.settings) > 1
    assert grid.varied
    lines = file.read_text().splitlines()
    for before, line in pairwise(lines):
        assert line.lstrip().startswith("#") or before.lstrip().startswith("#"), line


def test_vary_is_every_combination_and_runs_are_added(tmp_path: Path) -> None:
    grid = read_grid(
        grid_file(
            tmp_path,
            vary={"loss": ["lm", "seg"], "width": [16, 32]},
            runs=[{"lr": 0.1}, {"loss": "lm", "width": 32}],
            fixed={"epochs": 3},
            baseline={"loss": "seg", "width": 16},
        )
    )
    pairs = [(one["loss"], one["width"], one["lr"]) for one in grid.settings]
    vary = [(*pair, 2e-3) for pair in product(["lm", "seg"], [16, 32])]
    assert pairs == [*vary, ("compound", 32, 0.1)]  # the last but one is there already
    assert grid.baseline == 2
    assert grid.varied == ["loss", "lr", "width"]
    assert {one["epochs"] for one in grid.settings} == {3}


def test_a_number_may_be_written_as_people_write_it(tmp_path: Path) -> None:
    file = tmp_path / "g.yaml"
    file.write_text("vary: {lr: [1e-3, 2e-3, 1]}\nbaseline: {lr: 1e-3}\n")
    assert [one["lr"] for one in read_grid(file).settings] == [0.001, 0.002, 1.0]


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({**LM, "colour": 1}, "one of vary, runs, seeds, fixed, baseline, stores, manifest, split"),
        ({**LM, "fixed": {"colour": 1}}, "'colour' was unexpected"),
        ({**LM, "vary": {"loss": ["dice"]}}, "'dice' is not one of"),
        ({**LM, "vary": {"width": ["wide"]}}, "'wide' is not of type 'integer'"),
        ({**LM, "fixed": {"share": 2}}, "2 is greater than the maximum"),
        ({"baseline": {}}, "says neither vary nor runs"),
        ({"vary": {"loss": ["lm"]}}, "'baseline' is a required property"),
    ],
)
def test_what_no_grid_may_say_is_refused_by_name(
    grid: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        read_grid(grid_file(tmp_path, **grid))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({**LM, "baseline": {"loss": "compound"}}, "the baseline fits 0 of 2 settings"),
        ({**LM, "baseline": {"width": 32}}, "the baseline fits 2 of 2 settings"),
        ({**LM, "fixed": {"seg_every": 2}}, "--seg-every 2 leaves steps of --loss seg"),
        ({**LM, "fixed": {"store": "a"}}, "has the store a, and stores names none"),
        ({**LM, "stores": {"a": "a.zarr"}}, "has the store None, and stores names a"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    grid: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        read_grid(grid_file(tmp_path, **grid))
    assert says in str(error.value)


@pytest.mark.parametrize("content", ["vary: [", "3", ""])
def test_what_is_no_grid_is_an_error_and_no_traceback(content: str, tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(content)
    with pytest.raises(GmsLmmError):
        read_grid(tmp_path / "g.yaml")
    with pytest.raises(GmsLmmError):
        read_grid(tmp_path / "none.yaml")


def test_a_name_says_what_varies_and_what_is_not_the_default(tmp_path: Path) -> None:
    grid = read_grid(
        grid_file(
            tmp_path,
            vary={"loss": ["lm", "compound"], "seg_levels": ["level2,out"]},
            fixed={"epochs": 7, "width": 32},
            baseline={"loss": "lm"},
        )
    )
    names = [run_name(one, grid.varied, None, 3) for one in grid.settings]
    assert names == [
        "loss=lm,seg_levels=level2+out,epochs=7,s3",
        "loss=compound,seg_levels=level2+out,epochs=7,s3",
    ]
    assert run_name(grid.settings[0], grid.varied, 2, 3).endswith(",epochs=7,fold2,s3")


def test_no_two_settings_have_one_name_and_each_is_fit_for_a_file() -> None:
    default = {"model": "lmm", **{one.name: one.default for one in fields(TrainSettings)}}
    others: list[dict[str, Any]] = [
        {},
        {"lr": 1e-5},
        {"lr": 1.0000001e-5},
        {"share": 0.1},
        {"views": 1},
        {"seg_levels": "out,level1"},
        {"seg_levels": "level1,out"},
        {"deterministic": True},
        {"memory_gib": 0.5},
        {"store": "x" * 180, "lr": 1.0},
        {"store": "x" * 180, "lr": 2.0},
    ]
    names = [
        run_name({**default, "precision": "auto", **other}, (), fold, seed)
        for other in others
        for fold in (None, 0, 1)
        for seed in (0, 1)
    ]
    assert len({*names}) == len(names)
    assert all(len(name.encode()) <= 200 and "/" not in name for name in names)
