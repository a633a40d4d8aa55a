"""gms-lmm phantoms: a synthetic breast-ultrasound set, for the demo and the tests."""

from pathlib import Path

import click

from cli.options import emit, json_option, progress_bar


@click.command("phantoms")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--count", type=int, required=True, help="Images in all, at least 1.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed, an integer from 0.")
@json_option
def command(out: Path, count: int, seed: int, as_json: bool) -> None:
    """Draw synthetic breast-ultrasound images with exact lesion masks, in BUSI's own layout.

    OUT is a folder; a set of the same seed that is there already grows to --count images, and
    keeps those it has. Sizes are 320 × 200…299 px, classes are shared out as in BUSI.

    \b
    Example:
      gms-lmm phantoms demo/raw --count 200
      gms-lmm ingest demo/raw --layout busi -o demo/manifest.parquet
    """
    from pipeline.phantoms import write_phantoms

    with progress_bar("phantoms", "images") as progress:
        made = write_phantoms(out, count, seed, progress)

    def show() -> None:
        classes = ", ".join(f"{number} {kind}" for kind, number in made.by_class.items())
        news = f"{made.written} written" if made.written else "already there"
        click.echo(f"{made.root}: {made.count} images ({classes}), seed {made.seed}: {news}")

    result = {
        "root": str(made.root),
        "seed": made.seed,
        "count": made.count,
        "by_class": made.by_class,
        "written": made.written,
    }
    emit(result, as_json, show)
