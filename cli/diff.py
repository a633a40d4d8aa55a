"""gms-lmm diff: two stores in, what differs out."""

from typing import Any

import click

from cli.options import emit, json_option, some_of


@click.command("diff")
@click.argument("a")
@click.argument("b")
@json_option
def command(a: str, b: str, as_json: bool) -> None:
    """Show in which settings and samples two latent stores differ.

    \b
    Example:
      gms-lmm diff busi.zarr busi-new.zarr
    """
    from pipeline.store import open_store
    from pipeline.store.diff import diff_stores

    found = diff_stores(open_store(a), open_store(b))
    emit({"a": a, "b": b, **found}, as_json, lambda: _show(found))


def _show(found: dict[str, Any]) -> None:
    for name, (of_a, of_b) in found["settings"].items():
        click.echo(f"{name}: {of_a} → {of_b}")
    for what, ids in found["samples"].items():
        if ids:
            words = what if what.startswith("only") else f"{what} differs"
            click.echo(f"{words}: {some_of(ids)}")
    cells = found["cells"]
    click.echo(f"{cells['same']} of {cells['common']} common cells hold the same")
    if found["same"]:
        click.echo("no difference")
