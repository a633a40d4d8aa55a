"""gms-lmm ceiling: a latent store in, the best score its tokenizer allows out."""

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.options import device_option, emit, json_option, progress_bar, say


@click.command("ceiling")
@click.argument("store")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default="test",
    show_default=True,
    help="Split to decode.",
)
@device_option
@json_option
def command(store: str, split: str, device: str, as_json: bool) -> None:
    """Score what the tokenizer alone gives back: the best any model of this store could do.

    STORE is a path or any fsspec URL. The true masks' latents are decoded and scored against the
    masks; the images' latents likewise, in dB of PSNR.

    \b
    Example:
      gms-lmm ceiling busi.zarr --split test
    """
    from lmm.evaluate.ceiling import ceiling
    from pipeline.device import choose_device
    from pipeline.store import open_store

    opened, chosen = open_store(store), choose_device(device)
    with progress_bar("ceiling", "decodes") as progress:
        found = ceiling(opened, split, chosen, progress)
    summary = {**found.summary, "store": store}
    say_why_no_psnr(summary)
    title = f"{split}: {summary['n']} images"
    emit(summary, as_json, lambda: show_ceiling(title, summary))


def say_why_no_psnr(summary: dict[str, Any]) -> None:
    if summary["no_psnr"]:
        say(f"no image PSNR: {summary['no_psnr']}")


def show_ceiling(title: str, summary: dict[str, Any]) -> None:
    """What `lmm.evaluate.ceiling` found, as a table on stdout."""
    from lmm.metrics import METRICS

    grid = Table(title=title, title_justify="left")
    for heading in ("", "mean", "sd", "worst"):
        grid.add_column(heading, justify="left" if not heading else "right")
    for one in METRICS:
        values = [summary[name] for name in (one.key, f"{one.key}_sd", f"{one.key}_worst")]
        grid.add_row(f"mask {one.label}", *map(one.shown, values))
    if summary["image_psnr_db"] is not None:
        mean, worst = summary["image_psnr_db"], summary["image_psnr_db_worst"]
        grid.add_row("image PSNR dB", f"{mean:.2f}", "", f"{worst:.2f}")
    Console(highlight=False).print(grid)
    click.echo(f"tokenizer alone: {summary['tokenizer']}")
    click.echo(f"worst mask: {summary['worst']}; missed {summary['missed']}")
