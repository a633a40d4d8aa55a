"""gms-lmm study: a grid and a store in; runs, and the answer which setting is better, out."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli.options import LINE_EVERY_S, device_option, emit, json_option, say, some_of

if TYPE_CHECKING:
    from lmm.study import Plan, Standing
    from lmm.study.compare import Compared


@click.command("study")
@click.argument("grid_path", metavar="GRID", type=click.Path(path_type=Path))
@click.argument("options", metavar="[-- SNAKEMAKE OPTIONS]", nargs=-1)
@click.option("--latents", help="Latent store, where the grid names none.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of runs and answer."
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Runs at a time.  [default: as many as cores have threads for, or GPUs]",
)
@click.option(
    "--threads-per-run",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads of a run: two runs of one thread do more than one run of two.",
)
@click.option(
    "--runs-per-gpu",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs at a time on each GPU.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done and stop.")
@device_option
@json_option
def command(
    grid_path: Path,
    options: tuple[str, ...],
    latents: str | None,
    out: Path,
    jobs: int | None,
    threads_per_run: int,
    runs_per_gpu: int,
    dry_run: bool,
    device: str,
    as_json: bool,
) -> None:
    """Train and score every run of a grid, side by side, and compare its settings.

    Called again, it goes on: a run that is finished is not trained again. Options after -- go to
    Snakemake.

    \b
    Example:
      gms-lmm study config/studies/losses.yaml --latents busi.zarr --out studies/losses
      gms-lmm study grid.yaml --latents busi.zarr --out studies/s -- --profile slurm
    """
    from lmm.study import Resources, make_plan, read_grid, run_study, write_answer
    from pipeline.errors import CheckError

    plan = make_plan(read_grid(grid_path), out, latents)
    if dry_run:
        emit(_planned(plan), as_json, lambda: _show_plan(plan))
        return
    devices = _devices(device)
    at_a_time = jobs or _runs_at_a_time(devices, threads_per_run, runs_per_gpu)
    if not as_json:
        say(_in_words(plan))
    # Ended by a signal, it ends what it has started, as when it is interrupted.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _watching() as watch:
        outcome = run_study(plan, Resources(at_a_time, threads_per_run, devices), options, watch)
    compared = write_answer(plan) if len(outcome.failed) < len(plan.runs) else []
    result = {
        "study": str(out),
        "runs": len(plan.runs),
        "trained": outcome.trained,
        "failed": outcome.failed,
        "settings": [asdict(one) for one in compared],
        "results": str(out / "results.parquet") if compared else None,
        "page": str(out / "report.html") if compared else None,
    }
    emit(result, as_json, lambda: _show(plan, compared))
    if not outcome.trained and not outcome.failed:
        say(f"{out} is already complete")
    if outcome.failed:
        failures = [f"{name}: {reason}" for name, reason in outcome.failed.items()]
        raise CheckError(
            f"{len(failures)} of {len(plan.runs)} runs failed, the others are finished; "
            f"{some_of(failures, separator='; ')}",
            f"{out}/logs has what each said; the same command tries these again",
        )


def _devices(device: str) -> list[str]:
    """What runs are given in turns as their device: every GPU there is, unless one is asked for."""
    import torch

    if device == "auto" and torch.cuda.device_count() > 1:
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [device]


def _runs_at_a_time(devices: list[str], threads: int, runs_per_gpu: int) -> int:
    from pipeline.device import choose_device

    if choose_device(devices[0]).type == "cuda":
        return len(devices) * runs_per_gpu
    return max(1, len(os.sched_getaffinity(0)) // threads)


def _planned(plan: "Plan") -> dict[str, Any]:
    return {
        "study": str(plan.out),
        "settings": [plan.label(place) for place in range(len(plan.grid.settings))],
        "runs": [
            {"run": run.name, "train": run.train, "state": _state(plan, run)} for run in plan.runs
        ],
    }


def _state(plan: "Plan", run: Any) -> str:
    if run.name in plan.replaced:
        return "to train anew: its place has a run of other settings or of another store"
    if plan.done(run):
        return "done"
    return "to score" if plan.trained(run) else "to train"


def _show_plan(plan: "Plan") -> None:
    grid = Table(title=_in_words(plan), title_justify="left")
    for heading in ("run", "state"):
        grid.add_column(heading, overflow="fold")
    for run in plan.runs:
        grid.add_row(run.name, _state(plan, run))
    Console(highlight=False).print(grid)


def _in_words(plan: "Plan") -> str:
    done = sum(plan.done(run) for run in plan.runs)
    there = f", {done} of them done" if done else ""
    settings = len(plan.grid.settings)
    return f"study {plan.grid.name}: {settings} settings, {len(plan.runs)} runs{there}"


@contextmanager
def _watching() -> "Iterator[Callable[[Standing], None]]":
    """One bar for all runs, in epochs; it says how many are done, and where those at work are."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[at_work]}"), console=console) as bars:
        bar = bars.add_task("study", total=None, at_work="")

        def watch(standing: "Standing") -> None:
            runs, at_work = f"study {standing.done} of {standing.runs} runs", _at_work(standing)
            bars.update(
                bar, description=runs, completed=standing.epochs, total=standing.of, at_work=at_work
            )

        yield watch


def _lines() -> "Callable[[Standing], None]":
    """For logs: a line when a run is done, and now and then."""
    said, done = time.monotonic(), -1

    def watch(standing: "Standing") -> None:
        nonlocal said, done
        if time.monotonic() - said > LINE_EVERY_S or standing.done > done >= 0:
            said = time.monotonic()
            epochs = f"{standing.epochs} of {standing.of} epochs"
            at_work = _at_work(standing)
            say(
                f"study: {standing.done} of {standing.runs} runs, {epochs}"
                + (f"; {at_work}" if at_work else "")
            )
        done = standing.done

    return watch


def _at_work(standing: "Standing") -> str:
    runs = [f"{name} {epoch}/{epochs}" for name, (epoch, epochs) in standing.at_work.items()]
    return some_of(runs, separator="  ")


def _show(plan: "Plan", compared: "list[Compared]") -> None:
    from lmm.study import format_table

    if compared:
        click.echo(format_table(plan, compared, "markdown"), nl=False)
        click.echo(f"page: {(plan.out / 'report.html').resolve()}")
