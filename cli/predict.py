"""gms-lmm predict: a run and images in, masks at the images' own size out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    device_option,
    emit,
    images_at_a_time_option,
    json_option,
    predict_precision_option,
    progress_bar,
    run_option,
)
from pipeline.errors import InputError

if TYPE_CHECKING:
    from lmm.predict.files import Prediction


@click.command("predict")
@run_option
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("masks"),
    show_default=True,
    help="Folder of the masks, one PNG an image under its stem; masks that exist are replaced.",
)
@click.option(
    "--grey", is_flag=True, help="Also write the grey maps before the threshold, to grey/ therein."
)
@click.option(
    "--tokenizer",
    help="As for gms-lmm encode; only for a run of import-checkpoint, or where the weights have"
    " moved.  [default: the run's own]",
)
@click.option(
    "--size",
    type=click.IntRange(8),
    help="Side that images are resized to, px; only for a run of import-checkpoint."
    "  [default: the run's own]",
)
@images_at_a_time_option
@predict_precision_option
@device_option
@json_option
def command(
    run_path: Path,
    images: tuple[str, ...],
    output: Path,
    grey: bool,
    tokenizer: str | None,
    size: int | None,
    batch_size: int | None,
    precision: str,
    device: str,
    as_json: bool,
) -> None:
    """Segment new images: a mask for each, at the image's own size.

    IMAGE is a file, a folder (its own image files, not those of its folders) or a glob.
    An image that cannot be read is named at the end, with exit code 3; the other masks are written.

    \b
    Example:
      gms-lmm predict --run runs/busi-lm scans/ 'more/**/*.png' -o masks/
    """
    from pipeline.images.files import find_images, require_distinct_stems

    found = find_images(images)
    require_distinct_stems(found)

    from lmm.predict import load
    from lmm.predict.files import predict_files

    model = load(run_path, tokenizer=tokenizer, size=size, device=device, precision=precision)
    with progress_bar("predict", "images") as progress:
        done = predict_files(
            model, found, output, grey=grey, batch_size=batch_size, progress=progress
        )
    result = {
        "run": str(run_path),
        "n": done.n,
        "masks": str(output),
        "seconds": done.seconds,
        "images_per_s": done.images_per_s,
        "skipped": [{"image": str(one.path), "fault": one.detail} for one in done.skipped],
    }
    emit(result, as_json, lambda: _show(result))
    _refuse_silence(done)


def _show(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['masks']}: {result['n']} masks in {result['seconds']:.1f} s, "
        f"{result['images_per_s']:.2f} images/s"
    )


def _refuse_silence(done: "Prediction") -> None:
    """Raise InputError naming every image that has no mask."""
    if done.skipped:
        names = "\n".join(f"  {one.path}: {one.detail}; {one.fix}" for one in done.skipped)
        total = done.n + len(done.skipped)
        raise InputError(
            f"{len(done.skipped)} of {total} images have no mask, the others are written:\n{names}",
            "mend or remove these files, then run the same command again",
        )
