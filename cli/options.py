"""Options and output that several commands share: --json, progress bars, tables."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class BatchSize(click.ParamType[int | None]):
    """A positive number, or `auto` as None."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "auto":
            return None
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither 'auto' nor a positive number", param, ctx)
        return int(value)


LINE_EVERY_S = 15

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there."
)

latents_option = click.option(
    "--latents", required=True, help="Latent store: a path or any fsspec URL."
)

device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps."
)

size_option = click.option(
    "--size",
    type=click.IntRange(8),
    default=224,
    show_default=True,
    help="Side of image and mask, px.",
)

view_seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the drawn views."
)

step_size_option = click.option(
    "--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Samples a step."
)

images_at_a_time_option = click.option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    show_default=True,
    help="Images at a time through tokenizer, model and decoder.",
)

step_precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Arithmetic; auto is bf16 where the hardware computes in it.",
)

loss_option = click.option(
    "--loss",
    type=click.Choice(["lm", "seg", "compound"]),
    default="compound",
    show_default=True,
    help="Latent loss, Dice loss through a decoder, or their sum.",
)

seg_decoder_option = click.option(
    "--seg-decoder",
    type=click.Choice(["full", "student"]),
    default="student",
    show_default=True,
    help="What the Dice loss decodes with: the frozen decoder, or a small network taught by it.",
)

compile_option = click.option(
    "--compile", is_flag=True, help="Compile the model first: a minute, then faster steps."
)

residency_option = click.option(
    "--residency",
    type=click.Choice(["auto", "device", "ram", "stream"]),
    default="auto",
    show_default=True,
    help="Where the training latents are: the first that has room for them, or as you say.",
)

memory_option = click.option(
    "--memory-gib",
    type=click.FloatRange(0, min_open=True),
    help="GiB that they may take there.  [default: half of what there is]",
)

run_option = click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Run directory, as gms-lmm train writes it.",
)


def say(words: str) -> None:
    """Words for people, on stderr: stdout is data."""
    click.echo(words, err=True)


def emit(result: Mapping[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """Print `result` as one JSON object, or let `show` draw it for people."""
    if as_json:
        sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
    else:
        show()


def some_of(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class RateColumn(ProgressColumn):
    """Steps of the bar per second, in the bar's own unit."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        return Text(f"{task.speed:.1f} {unit}/s" if task.speed else f"– {unit}/s")


def _progress_lines(what: str, unit: str) -> Callable[[int, int], None]:
    """For logs: nothing for short work, then a line every LINE_EVERY_S."""
    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > LINE_EVERY_S:
            said = time.monotonic()
            say(f"{what}: {done} of {total} {unit}")

    return progress


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr on terminals, else a line now and then; yields a callback (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _progress_lines(what, unit)
        return
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(what, total=None, unit=unit)
        yield lambda done, total: bars.update(task, completed=done, total=total)


# Scores as tables show them: key, label with unit, factor.
SCORES = (("dsc", "DSC %", 100), ("iou", "IoU %", 100), ("hd95", "HD95 px", 1))


def table(title: str, rows: Mapping[str, Any]) -> None:
    """A two-column table on stdout."""
    grid = Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        grid.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console(highlight=False).print(grid)
