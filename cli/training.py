"""What the commands that train have in common: the plan in words, and a run that may be there."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cli.options import emit, progress_bar, say, table
from pipeline.telling import Progress


def make_cublas_deterministic() -> None:
    """What --deterministic needs beside torch's own switch; cuBLAS reads it when first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def show_plan(out: Path, plan: Mapping[str, Any], as_json: bool) -> None:
    """What --dry-run prints of a run at `out`."""
    shown = {"run": str(out), **plan}
    emit(shown, as_json, lambda: table("would train", shown))


def carry_out(
    what: str,
    out: Path,
    plan: Mapping[str, Any],
    work: Callable[[Progress], dict[str, Any]],
    *,
    prepare: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Say what is going to be trained, train it with a bar, and say when it was there already.

    what     the command, a word
    work     called with the bar; the run at `out` is finished when it returns the summary
    prepare  called before the bar, unless the run is finished
    """
    finished = out / "summary.json"
    before = finished.read_bytes() if finished.exists() else None
    if before is None:
        if not quiet:
            say(f"{what} {out}: " + ", ".join(f"{key} {value}" for key, value in plan.items()))
        prepare()
    with progress_bar(what, "steps") as progress:
        summary = work(progress)
    # A run replaced by --overwrite has a summary of its own.
    if finished.read_bytes() == before:
        say(f"{out} is already complete")
    return summary
