"""gms-lmm ingest: a raw data set becomes a manifest, or one list of all that is wrong with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import emit, json_option, progress_bar, say
from pipeline.archive.layouts import LAYOUTS
from pipeline.archive.splits import SPLIT, VAL_FRACTION
from pipeline.manifest import SPLITS

if TYPE_CHECKING:
    import polars as pl

    from pipeline.archive import Ingest


def _shares(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    """The shares of --split, as 0.8/0.2."""
    if value is None:
        return None
    try:
        train, test = (float(share) for share in value.split("/"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not two shares such as 0.8/0.2") from None
    return train, test


def _window(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, int] | None:
    """The two values of --window, as 0,4095; None for auto."""
    if value == "auto":
        return None
    try:
        low, high = (int(level) for level in {"full": "0,65535"}.get(value, value).split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not auto, full or two values: 0,4095") from None
    if not 0 <= low < high <= 65535:
        raise click.BadParameter(f"{value!r} does not rise within 0 to 65535")
    return low, high


@click.command("ingest")
@click.argument("root", type=click.Path())
@click.option(
    "--layout",
    required=True,
    type=click.Choice(list(LAYOUTS)),
    help="How the archive is laid out; gms-lmm datasets describes each.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default="manifest.parquet",
    show_default=True,
    help="Manifest to write, a parquet file; one that exists is replaced.",
)
@click.option(
    "--split",
    callback=_shares,
    metavar="TRAIN/TEST",
    help="Draw the split: shares of train and test, which sum to 1; 0/1 is all test."
    f"  [default: the archive's official split, else {SPLIT[0]}/{SPLIT[1]}]",
)
@click.option(
    "--split-file",
    type=click.Path(),
    help="Take the split from a GMS pickle, a CSV or a parquet with sample_id and split."
    "  [default: none]",
)
@click.option(
    "--val-fraction",
    type=float,
    default=VAL_FRACTION,
    show_default=True,
    help="Share of train, 0 to 1, held out as val by whole groups.",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Deal train into this many folds; train --fold leaves one out, to be scored by it."
    "  [default: none]",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the draw, an integer."
)
@click.option(
    "--name", help="Name of the data set in the manifest's rows.  [default: the layout's name]"
)
@click.option(
    "--include-normal", is_flag=True, help="Layout busi: take the images without a lesion too."
)
@click.option(
    "--mask-suffix",
    default="",
    help="Layout pairs: what a mask's name has after its image's, such as _mask.  [default: none]",
)
@click.option(
    "--foreground",
    metavar="COLOUR|enclosed",
    help="Colour of the masks' foreground, such as '#ff0000' or red; enclosed turns masks that are "
    "drawn inside out, and no others.  [default: what is not black]",
)
@click.option(
    "--window",
    callback=_window,
    default="auto",
    show_default=True,
    metavar="auto|full|LOW,HIGH",
    help="Values of 16-bit images that become black and white; auto is 0 and the highest of as few "
    "bits (8, 10, 12, 14, 16) as hold the whole data set.",
)
@click.option(
    "--no-twins", is_flag=True, help="Do not look for images that are alike but for their bytes."
)
@click.option(
    "--twin-sheet",
    type=click.Path(path_type=Path),
    help="Draw the twins that stand in two splits, or all if none does, side by side, as PNG or"
    " whatever the suffix says.  [default: none]",
)
@click.option(
    "--skip-bad", is_flag=True, help="Leave out what is at fault, by name, instead of failing."
)
@json_option
def command(
    root: str,
    layout: str,
    output: str,
    no_twins: bool,
    twin_sheet: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Check every image and mask under ROOT and write the manifest of the data set.

    ROOT is a folder, or its URL: s3://bucket/data.

    \b
    Example:
      gms-lmm ingest Dataset_BUSI_with_GT --layout busi -o manifest.parquet
    """
    from pipeline.archive import build_manifest
    from pipeline.archive.checks import fault_lines
    from pipeline.manifest import write_manifest

    if no_twins and twin_sheet:
        raise click.UsageError("--no-twins leaves nothing to draw: leave out --twin-sheet")
    with progress_bar("ingest", "samples") as progress:
        options |= {"progress": progress, "twin_progress": progress}  # the bar fills twice
        ingest = build_manifest(root, layout, twins=not no_twins, **options)
    write_manifest(ingest.manifest, output)
    if twin_sheet:
        _draw(ingest, twin_sheet)
    for note in ingest.notes:
        say(f"note: {note}")
    if ingest.quarantined:
        say(f"left out, {len(ingest.quarantined)} faults:")
        say("\n".join(fault_lines(ingest.quarantined)))
    emit(_result(ingest, output), as_json, lambda: _show(ingest.manifest.frame, output))


def _result(ingest: "Ingest", output: str) -> dict[str, Any]:
    import polars as pl

    from pipeline.archive.notes import count_twins

    frame = ingest.manifest.frame
    return {
        "samples": frame.height,
        "by_split": {split: frame.filter(pl.col("split") == split).height for split in SPLITS},
        "quarantined": [
            {"file": fault.file, "kind": fault.kind, "detail": fault.detail}
            for fault in ingest.quarantined
        ],
        "by_class": _by_class(frame),
        "groups": frame.get_column("group_id").n_unique(),
        "twins": None if ingest.twins is None else count_twins(frame),
        "folds": _fold_sizes(frame),
        "window": ingest.manifest.window,
        "multi_mask": frame.filter(pl.col("masks").list.len() > 1).height,
        "inside_out": list(ingest.inside_out),
        "notes": list(ingest.notes),
        "split": ingest.manifest.settings["split"],
        "root": str(ingest.manifest.root),
        "digest": ingest.manifest.digest,
        "output": output,
    }


def _draw(ingest: "Ingest", path: Path) -> None:
    from pipeline.archive.twin_sheet import PAIRS_SHOWN, choose_twins, draw_twins
    from pipeline.images.sheet import write_sheet

    chosen = choose_twins(ingest.manifest, ingest.twins or ())
    if not chosen:
        say(f"no twins: {path} is not written")
        return
    write_sheet(draw_twins(ingest.manifest, chosen), path)
    say(f"{path}: {min(len(chosen), PAIRS_SHOWN)} of {len(ingest.twins or ())} pairs of twins")


def _fold_sizes(frame: "pl.DataFrame") -> list[int] | None:
    """Samples of fold 0, 1, …; None without folds."""
    folds = frame.get_column("fold").drop_nulls()
    return folds.value_counts().sort("fold").get_column("count").to_list() or None


def _by_class(frame: "pl.DataFrame") -> dict[str, int]:
    counts = frame.drop_nulls("class").group_by("class").len().sort("class")
    return dict(counts.rows())


def _show(frame: "pl.DataFrame", output: str) -> None:
    import polars as pl
    from rich.console import Console
    from rich.table import Table

    table = Table(caption=f"{frame.height} samples in {output}", caption_justify="left")
    table.add_column("split")
    for heading in ("samples", "groups", "foreground %"):
        table.add_column(heading, justify="right")
    table.add_column("classes (samples)")
    for split in SPLITS:
        part = frame.filter(pl.col("split") == split)
        classes = " · ".join(f"{name} {count}" for name, count in _by_class(part).items())
        groups = part.get_column("group_id").n_unique()
        covered = part.get_column("foreground_fraction").sum() / max(part.height, 1)
        table.add_row(split, str(part.height), str(groups), f"{100 * covered:.1f}", classes)
    Console(highlight=False).print(table)
    if sizes := _fold_sizes(frame):
        click.echo(f"folds of {', '.join(map(str, sizes))} samples")
