"""gms-lmm datasets: the archives that ingest reads, their terms and where they are published."""

import click

from cli.options import emit, json_option


@click.command("datasets")
@json_option
def command(as_json: bool) -> None:
    """List the data set layouts that ingest knows, with licence and source.

    \b
    Example:
      gms-lmm datasets
    """
    from pipeline.archive.layouts import LAYOUTS

    fields = ("name", "archive", "licence", "published", "citation")
    layouts = [{key: getattr(layout, key) for key in fields} for layout in LAYOUTS.values()]

    def show() -> None:
        for layout in layouts:
            click.secho(layout["name"], bold=True)
            for key in fields[1:]:
                click.echo(f"  {key:10} {layout[key]}")

    emit({"layouts": layouts}, as_json, show)
