"""gms-lmm inspect: a latent store in, what it holds out."""

from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.options import emit, json_option


@click.command("inspect")
@click.argument("store")
@json_option
def command(store: str, as_json: bool) -> None:
    """Show what a latent store holds, finished or not.

    STORE is a path or any fsspec URL.

    \b
    Example:
      gms-lmm inspect busi.zarr
    """
    from pipeline.store import open_store
    from pipeline.store.inspect import describe_store

    facts = describe_store(open_store(store))
    emit(facts, as_json, lambda: _show(facts))


def _show(facts: dict[str, Any]) -> None:
    tokenizer = facts["tokenizer"]
    state = "complete" if facts["complete"] else "unfinished: run gms-lmm encode again"
    splits = " · ".join(f"{split} {count}" for split, count in facts["by_split"].items())
    departed = f"; {facts['departed']} have left the manifest" if facts["departed"] else ""
    rows = {
        "state": f"{state} ({facts['present']} of {facts['cells']} cells)",
        "samples": f"{facts['samples']} ({splits}){departed}",
        "views": f"{facts['views']} a sample, seed {facts['seed']}",
        "latent": f"{_shape(facts['latent_shape'])} from {facts['size_px']} px, "
        f"encoded in {facts['precision']}",
        "tokenizer": f"{tokenizer['name']} ({tokenizer['kind']}), "
        f"scaling factor {tokenizer['scaling_factor']}",
        "digest": tokenizer["digest"],
        "on disk": f"{_mb(facts['bytes'])}, {_mb(facts['bytes_per_view'])} a view",
    }
    width = max(map(len, rows))
    click.secho(facts["store"], bold=True)
    for key, words in rows.items():
        click.echo(f"  {key:{width}}  {words}")
    console = Console(highlight=False)
    console.print(_arrays(facts["arrays"]))
    if facts["latents"]:
        console.print(_latents(facts["latents"]))


def _arrays(arrays: dict[str, dict[str, Any]]) -> Table:
    table = Table("array", "shape", "dtype", "chunk")
    table.add_column("on disk", justify="right")
    table.add_column("compression", justify="right")
    for name, array in arrays.items():
        ratio = "" if array["compression"] is None else f"{array['compression']:.1f} ×"
        shape, chunk = _shape(array["shape"]), _shape(array["chunk"])
        table.add_row(name, shape, array["dtype"], chunk, _mb(array["bytes"]), ratio)
    return table


def _latents(statistics: dict[str, dict[str, list[float]]]) -> Table:
    """A row an array and statistic, a column a channel."""
    channels = len(statistics["image_mean"]["mean"])
    table = Table("clean images, scaled", *(f"channel {i}" for i in range(channels)))
    for name, of in statistics.items():
        for statistic, values in of.items():
            table.add_row(f"{statistic} of {name}", *(f"{value:.3f}" for value in values))
    return table


def _shape(sides: list[int]) -> str:
    return " × ".join(map(str, sides))


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count} bytes"
