"""Settings of training: one home, which the command line and the workflow's schema agree with."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import cli.bench
import cli.train
from lmm.settings import TrainSettings, known_settings
from pipeline.errors import UsageError

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())["properties"]["train"]
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {p.name: p for p in command.params if isinstance(p, click.Option) and p.name}


def test_settings_are_there_without_torch() -> None:
    code = "import sys, lmm.settings; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_train_offers_every_setting_and_starts_from_its_default() -> None:
    options = options_of(cli.train.command)
    for one in fields(TrainSettings):
        # What the hardware computes in is for the machine to say, not for a library's default.
        default = "auto" if one.name == "precision" else one.default
        assert options[one.name].default == default, one.name


def test_bench_train_takes_the_same_options_as_train() -> None:
    train = options_of(cli.train.command)
    bench = options_of(cli.bench.bench_train_command)
    shared = bench.keys() & {one.name for one in fields(TrainSettings)}
    assert {"loss", "batch_size", "precision", "compile"} <= shared
    for name in shared:
        assert bench[name].to_info_dict() == train[name].to_info_dict()


def test_a_configuration_may_say_every_setting_and_the_seeds_of_its_runs() -> None:
    said = SCHEMA["properties"].keys() - {"seeds"}
    assert said == {one.name for one in fields(TrainSettings)} - {"seed"}


@pytest.mark.parametrize("name", SCHEMA["properties"].keys() - {"seeds"})
def test_the_schema_allows_what_the_setting_allows(name: str) -> None:
    said, one = SCHEMA["properties"][name], known_settings()[name]
    allowed: dict[str, Any] = {"type": TYPES[one.kind]}
    if one.choices and not one.some:
        allowed = {"enum": [*(["auto"] if one.automatic else []), *one.choices]}
    if one.minimum is not None:
        allowed["minimum"] = one.minimum
    if one.above is not None:
        allowed["exclusiveMinimum"] = one.above
    if one.maximum is not None:
        allowed["maximum"] = one.maximum
    assert {key: value for key, value in said.items() if key != "description"} == allowed


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loss": "dice"}, "--loss dice is not known\nfix: one of lm, seg, compound"),
        ({"seg_levels": "out,level3"}, "--seg-levels level3 is not known"),
        ({"precision": "auto"}, "--precision auto is not known"),
        ({"epochs": 0}, "--epochs 0 is too small\nfix: at least 1"),
        ({"lr": 0.0}, "--lr 0.0 is too small\nfix: more than 0"),
        ({"lr": float("nan")}, "--lr nan is too small"),
        ({"share": 1.5}, "--share 1.5 is too large\nfix: at most 1"),
        ({"memory_gib": 0}, "--memory-gib 0 is too small"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainSettings(**wrong)
    assert str(error.value).startswith(says)
