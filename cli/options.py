"""Options and output that several commands share: --json, progress bars, tables."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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

import pipeline.telling
from lmm.settings import TrainSettings, known_settings

Command = TypeVar("Command", bound=Callable[..., Any])


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
some_of = partial(pipeline.telling.some_of, shown=5)

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

images_at_a_time_option = click.option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    show_default=True,
    help="Images at a time through tokenizer, model and decoder; auto is as evaluate has it.",
)

predict_precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Arithmetic; auto is the store's for the tokenizer's encoder and fp32 for the rest, which"
    " gives the masks that evaluate scores. bf16 is faster and changes masks.",
)

run_option = click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Run directory, as gms-lmm train writes it.",
)


runs_option = click.option(
    "--run",
    "run_paths",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="Run directory, as gms-lmm train writes it; several times: their grey maps are averaged.",
)


def average_option(views: str) -> Callable[[Command], Command]:
    """The option --average; `views` says which views are averaged."""
    return click.option(
        "--average",
        type=click.Choice(["none", "views", "dihedral"]),
        default="none",
        show_default=True,
        help=f"Average the grey maps over {views}, or over an image's eight flips and quarter"
        " turns, each of them encoded.",
    )


def run_folder_options(images: str) -> Callable[[Command], Command]:
    """What may be done with a run that is at --out; `images` says what it is trained from."""
    others = f"Replace a run at --out of other settings or another {images}."

    def decorate(command: Command) -> Command:
        dry_run = click.option("--dry-run", is_flag=True, help="Print what would be done and stop.")
        overwrite = click.option("--overwrite", is_flag=True, help=others)
        resume = click.option(
            "--resume", is_flag=True, help="Go on from the last whole epoch of --out."
        )
        return resume(overwrite(dry_run(command)))

    return decorate


def setting_options(*names: str, of: type = TrainSettings) -> Callable[[Command], Command]:
    """Options for settings of a training run, in this order: each as its settings have it."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _option(name, of)(command)
        return command

    return decorate


def _option(name: str, settings: type) -> Callable[[Command], Command]:
    default, one = getattr(settings, name), known_settings(settings)[name]
    word = f"--{name.replace('_', '-')}"
    if one.kind is bool:
        return click.option(word, is_flag=True, default=default, help=one.help)
    kind: Any = one.kind
    if one.choices and not one.some:
        kind = click.Choice([*(["auto"] if one.automatic else []), *one.choices])
    elif one.minimum is not None:
        kind = click.IntRange(one.minimum)
    elif one.above is not None:
        kind = click.FloatRange(one.above, one.maximum, min_open=True)
    return click.option(
        word,
        type=kind,
        default="auto" if one.automatic else default,
        show_default=default is not None,
        help=one.help,
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


def table(title: str, rows: Mapping[str, Any]) -> None:
    """A two-column table on stdout."""
    grid = Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        grid.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console(highlight=False).print(grid)
