"""Snakemake at work for a study: one at a time, its options passed on, its refusals said."""

import importlib.util
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from studied import fabricated, grid_file

from cli.main import main
from lmm.study import Resources, make_plan, read_grid, run_study
from lmm.study.schedule import _alone
from pipeline.errors import ArtefactError, UsageError

GRID: dict[str, Any] = {"vary": {"width": [16, 32]}, "baseline": {"width": 16}}


def hold(out: Path, held: Any) -> None:
    with _alone(out):
        held.set()
        held_until_killed = multiprocessing.get_context("spawn").Event()
        held_until_killed.wait()


def test_a_second_study_in_a_folder_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    first = context.Process(target=hold, args=(tmp_path, held))
    first.start()
    assert held.wait(120)
    with (
        pytest.raises(ArtefactError, match=f"is at work in .*process {first.pid} on"),
        _alone(tmp_path),
    ):
        pass
    first.kill()
    first.join()
    with _alone(tmp_path):
        pass


def test_a_study_that_is_done_starts_nothing(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = fabricated(tmp_path, small_store, **GRID)
    monkeypatch.setattr("subprocess.Popen", None)
    outcome = run_study(plan, Resources(jobs=1))
    assert (outcome.trained, outcome.failed) == ([], {})


def test_options_that_snakemake_refuses_are_a_usage_error(small_store: str, tmp_path: Path) -> None:
    plan = make_plan(read_grid(grid_file(tmp_path, **GRID)), tmp_path / "study", small_store)
    with pytest.raises(UsageError, match=r"Snakemake did not begin: .*--no-such-option"):
        run_study(plan, Resources(jobs=1), ["--no-such-option"])


def test_without_snakemake_a_study_says_how_to_install_it(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(read_grid(grid_file(tmp_path, **GRID)), tmp_path / "study", small_store)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "snakemake" else find(name)
    )
    with pytest.raises(UsageError, match=r"a study needs Snakemake\nfix: pip install"):
        run_study(plan, Resources(jobs=1))
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(UsageError, match="a study needs yaml and jsonschema"):
        read_grid(tmp_path / "grid.yaml")


def test_a_dry_run_lists_every_run_and_writes_nothing(small_store: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    arguments = ["study", str(grid_file(tmp_path, **GRID)), "--latents", small_store]
    done = CliRunner().invoke(main, [*arguments, "--out", str(out), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    assert '"run": "width=16,s0"' in done.stdout
    assert '"state": "to train"' in done.stdout
    assert not out.exists()
