"""gms-lmm import-checkpoint: the GMS authors' weights in, run directory out."""

from pathlib import Path

import click

from cli.options import emit, json_option


@click.command("import-checkpoint")
@click.argument("source", metavar="FILE.pth", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Run directory to make."
)
@json_option
def command(source: Path, out: Path, as_json: bool) -> None:
    """Turn the GMS authors' published LMM weights into a run that evaluate reads.

    \b
    Example:
      gms-lmm import-checkpoint best_valid_dice.pth --out runs/gms-busi
    """
    from lmm.run.authors import import_checkpoint

    run = import_checkpoint(source, out)
    parameters = run.model().parameter_count
    emit(
        {"run": str(run.path), "parameters": parameters},
        as_json,
        lambda: click.echo(f"{run.path}: {parameters} parameters"),
    )
