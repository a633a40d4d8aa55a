"""gms-lmm predict: a run and images in, masks at the images' own size out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    average_option,
    device_option,
    emit,
    images_at_a_time_option,
    json_option,
    predict_precision_option,
    progress_bar,
    runs_option,
)
from pipeline.errors import InputError, UsageError

if TYPE_CHECKING:
    from lmm.averaging import Average
    from lmm.predict.files import Prediction


@click.command("predict")
@runs_option
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
    "--confidence",
    type=click.Path(path_type=Path),
    help="CSV file to write each image's confidence to: the DSC that its grey map expects.",
)
@average_option("--views drawn views of an image")
@click.option(
    "--views",
    type=click.IntRange(2),
    help="Views of an image that --average views draws and encodes, the clean one among them."
    "  [default: 8]",
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
    run_paths: tuple[Path, ...],
    images: tuple[str, ...],
    output: Path,
    grey: bool,
    confidence: Path | None,
    average: "Average",
    views: int | None,
    tokenizer: str | None,
    size: int | None,
    batch_size: int | None,
    precision: str,
    device: str,
    as_json: bool,
) -> None:
    """Segment new images: a mask for each, at the image's own size.

    IMAGE is a file, a folder (its own image files, not those of its folders) or a glob.
    Of several runs, or with --average, the mean grey map becomes the mask.
    An image that cannot be read is named at the end, with exit code 3; the other masks are written.

    \b
    Example:
      gms-lmm predict --run runs/busi-lm scans/ 'more/**/*.png' -o masks/
    """
    from pipeline.images.files import find_images, require_distinct_stems

    if views and average != "views":
        raise UsageError("--views is for --average views alone", "--average views, or no --views")
    found = find_images(images)
    require_distinct_stems(found)

    from lmm.averaging import VIEWS
    from lmm.predict import load
    from lmm.predict.files import predict_files, write_confidence

    run_path, *others = run_paths
    model = load(
        run_path,
        tokenizer=tokenizer,
        size=size,
        device=device,
        precision=precision,
        others=others,
        average=average,
        views=views or VIEWS,
    )
    with progress_bar("predict", "images") as progress:
        done = predict_files(
            model, found, output, grey=grey, batch_size=batch_size, progress=progress
        )
    averaged = average != "none" or len(run_paths) > 1
    if confidence:
        write_confidence(done, confidence)
    result = {
        "run": str(run_path),
        "n": done.n,
        "masks": str(output),
        "seconds": done.seconds,
        "images_per_s": done.images_per_s,
        **({"average": average, "runs": [*map(str, run_paths)]} if averaged else {}),
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
