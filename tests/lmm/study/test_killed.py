"""A study killed, blocked and taken up again: its runs are those that `train` alone makes.

By default two runs and one kill. As many kills as are asked for, at random, of a study of 3 × 2:
GMS_LMM_KILLS=2 pytest tests/lmm/study/test_killed.py -s
"""

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner, Result
from studied import grid_file

from cli.main import main
from lmm.run.checkpoint import read_checkpoint
from lmm.settings import TrainSettings
from lmm.study import read_plan
from lmm.study.plan import Plan
from lmm.train import train
from pipeline.store import open_store

KILLS = int(os.environ.get("GMS_LMM_KILLS", "0"))
SHORT: dict[str, Any] = {"loss": "lm", "epochs": 8, "batch_size": 1, "width": 16}
SHORT |= {"val_every": 1, "precision": "fp32"}
GRID: dict[str, Any] = {"fixed": SHORT, "baseline": {"lr": 1e-3}, "vary": {"lr": [1e-3, 2e-3]}}
if KILLS:
    SHORT["epochs"] = 150
    GRID |= {"vary": {"lr": [1e-3, 2e-3, 4e-3]}, "seeds": [0, 1]}
JOBS = "2" if KILLS else "1"

Kept = dict[str, tuple[bytes, int]]


@dataclass(frozen=True)
class Story:
    """What lay in a study's folder as it went.

    finished  after each kill, the files of the runs that were finished then
    blocked   the run whose place something else had
    failed    the study that could not train it
    freed     the study after that
    again     and once more
    """

    plan: Plan
    finished: list[Kept]
    blocked: str
    failed: Result
    freed: Result
    again: Result
    end: Kept


def kept(out: Path) -> Kept:
    """Bytes and time of change of weights, log and summary of every finished run."""
    found = {}
    for summary in sorted(out.glob("runs/*/summary.json")):
        for name in ("best.safetensors", "last.safetensors", "log.jsonl", "summary.json"):
            file = summary.parent / name
            found[f"{summary.parent.name}/{name}"] = (file.read_bytes(), file.stat().st_mtime_ns)
    return found


def words(grid: Path, url: str, out: Path) -> list[str]:
    return ["study", str(grid), "--latents", url, "--out", str(out), "--jobs", JOBS, "--json"]


def started(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", "from cli.main import main; main()", *arguments])


def wait_for_training(study: "subprocess.Popen[bytes]", out: Path, rng: random.Random) -> None:
    before = len(kept(out))
    deadline = time.monotonic() + (rng.uniform(15, 60) if KILLS else 300)
    while time.monotonic() < deadline and study.poll() is None:
        if not KILLS and any(out.glob("runs/*/log.jsonl")) and len(kept(out)) == before:
            break
        time.sleep(0.02)


def kill(arguments: list[str], out: Path, rng: random.Random) -> None:
    """Start a study, and end it with all it has started, in the midst of a training."""
    study = started(arguments)
    wait_for_training(study, out, rng)
    for process in family(study):
        process.kill()
    study.wait()


def family(study: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    if study.poll() is not None:
        return []
    parent = psutil.Process(study.pid)
    return [parent, *parent.children(recursive=True)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, small_store: str) -> Story:
    folder = tmp_path_factory.mktemp("killed")
    out, arguments = (
        folder / "study",
        words(grid_file(folder, **GRID), small_store, folder / "study"),
    )
    rng, finished = random.Random(0), []
    for _ in range(max(1, KILLS)):
        kill(arguments, out, rng)
        finished.append(kept(out))
    plan = read_plan(out)
    blocked = next(run for run in reversed(plan.runs) if not plan.trained(run)).name
    place = out / "runs" / blocked
    aside = place.rename(folder / "aside") if place.exists() else None
    place.mkdir()
    (place / "notes.txt").write_text("of someone else")
    failed = CliRunner().invoke(main, arguments)
    finished.append(kept(out))
    (place / "notes.txt").unlink()
    if aside:
        place.rmdir()
        aside.rename(place)
    freed = CliRunner().invoke(main, arguments)
    again = CliRunner().invoke(main, arguments)
    return Story(plan, finished, blocked, failed, freed, again, kept(out))


def test_a_run_that_fails_is_named_and_the_others_finish(story: Story) -> None:
    assert story.failed.exit_code == 5
    result = json.loads(story.failed.stdout)
    others = {run.name for run in story.plan.runs} - {story.blocked}
    assert {*result["failed"]} == {story.blocked}
    assert "is not a run" in result["failed"][story.blocked]
    assert {name.rpartition("/")[0] for name in story.finished[-1]} == others
    assert f"1 of {len(story.plan.runs)} runs failed" in story.failed.stderr


def test_the_next_call_trains_what_is_missing_and_the_one_after_nothing(story: Story) -> None:
    assert story.freed.exit_code == 0, story.freed.output
    assert json.loads(story.freed.stdout)["trained"] == [story.blocked]
    assert story.again.exit_code == 0, story.again.output
    assert json.loads(story.again.stdout)["trained"] == []
    assert "already complete" in story.again.stderr


def test_no_finished_run_is_trained_again(story: Story) -> None:
    assert len(story.end) == 4 * len(story.plan.runs)
    for finished in story.finished:
        assert finished.items() <= story.end.items()


def test_every_run_is_that_of_train_alone_to_the_bit(
    story: Story, small_store: str, tmp_path: Path
) -> None:
    threads, store = torch.get_num_threads(), open_store(small_store)
    torch.set_num_threads(1)
    try:
        for run in story.plan.runs:
            setting = story.plan.grid.settings[run.setting]
            settings = TrainSettings(**SHORT, lr=setting["lr"], seed=run.seed)
            train(store, tmp_path / run.name, settings, device=torch.device("cpu"))
            alone, _ = read_checkpoint(tmp_path / run.name / "best.safetensors")
            ours, _ = read_checkpoint(story.plan.out / "runs" / run.name / "best.safetensors")
            assert alone.keys() == ours.keys()
            assert all(torch.equal(alone[name], ours[name]) for name in alone)
    finally:
        torch.set_num_threads(threads)


def test_the_answer_is_there_in_every_form(story: Story) -> None:
    for name in ("results.parquet", "results.md", "results.tex", "results.csv", "report.html"):
        assert (story.plan.out / name).stat().st_size > 0
    shown = CliRunner().invoke(main, ["report", str(story.plan.out), "--table", "markdown"])
    assert shown.stdout == (story.plan.out / "results.md").read_text()
    assert shown.stdout.startswith("| lr | runs | DSC (%) |")


def test_a_study_that_is_terminated_ends_what_it_has_started(
    small_store: str, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    study = started(words(grid_file(tmp_path, **GRID), small_store, out))
    wait_for_training(study, out, random.Random(0))
    whole = family(study)
    assert len(whole) > 2  # Snakemake, and a training, at the least
    study.terminate()
    assert study.wait(60) == 1
    _, alive = psutil.wait_procs(whole, 10)
    assert alive == []
