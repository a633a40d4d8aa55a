"""gms-lmm preview: manifest in, contact sheet out."""

from pathlib import Path

import click

from cli.options import (
    device_option,
    emit,
    json_option,
    progress_bar,
    size_option,
    view_seed_option,
)


@click.command("preview")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("preview.png"),
    show_default=True,
    help="Sheet to write: PNG, or whatever its suffix says; one that exists is replaced.",
)
@click.option(
    "--views",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Views of each sample: the clean one and K−1 augmented ones.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Samples on the sheet, spread evenly over the manifest.",
)
@view_seed_option
@size_option
@click.option(
    "--tokenizer",
    help="Also show what this tokenizer keeps of image and mask; names as in gms-lmm encode."
    "  [default: none]",
)
@device_option
@json_option
def command(
    manifest: Path,
    output: Path,
    views: int,
    samples: int,
    seed: int,
    size: int,
    tokenizer: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Draw a contact sheet: image, mask contour, views, tokenizer round trip.

    \b
    Example:
      gms-lmm preview manifest.parquet -o sheet.png --views 4 --tokenizer taesd
    """
    from pipeline.weights import locate

    if tokenizer:
        locate(tokenizer)

    from pipeline.manifest import read_manifest

    rows = read_manifest(manifest)

    from pipeline.device import choose_device
    from pipeline.images.sheet import write_sheet
    from pipeline.preview import draw_preview
    from pipeline.tokenizer import load_tokenizer

    with progress_bar("preview", "samples") as progress:
        preview = draw_preview(
            rows,
            views=views,
            samples=samples,
            seed=seed,
            size=size,
            tokenizer=load_tokenizer(tokenizer, choose_device(device)) if tokenizer else None,
            progress=progress,
        )
    write_sheet(preview.sheet, output)
    width, height = preview.sheet.size
    emit(
        {"sheet": str(output), "width": width, "height": height, "samples": preview.rows},
        as_json,
        lambda: click.echo(f"{output}: {len(preview.rows)} samples, {width} × {height} px"),
    )
