"""gms-lmm phantoms: arguments arrive, stdout is data, mistakes have a fix."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.phantoms import command
from pipeline.errors import UsageError
from pipeline.phantoms.dataset import PhantomSet


def test_arguments_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = {}

    def fake(root: Path, count: int, seed: int, progress: object) -> PhantomSet:
        seen.update(root=root, count=count, seed=seed)
        return PhantomSet(root, seed, count, {"benign": count}, 0)

    monkeypatch.setattr("pipeline.phantoms.write_phantoms", fake)
    result = CliRunner().invoke(command, [str(tmp_path), "--count", "12", "--seed", "3"])
    assert result.exit_code == 0
    assert seen == {"root": tmp_path, "count": 12, "seed": 3}
    assert "already there" in result.stdout


def test_json_is_one_object_and_stderr_is_empty(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "out"), "--count", "3", "--json"])
    assert result.exit_code == 0
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "root": str(tmp_path / "out"),
        "seed": 0,
        "count": 3,
        "by_class": {"benign": 2, "malignant": 1, "normal": 0},
        "written": 3,
    }


def test_a_mistake_is_a_usage_error_with_a_fix(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path), "--count", "0"])
    assert isinstance(result.exception, UsageError)
    assert "--count" in result.exception.fix


def test_help_shows_an_example_and_the_default() -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout
    assert "gms-lmm phantoms demo/raw --count 200" in text
    assert "[default: 0]" in text
