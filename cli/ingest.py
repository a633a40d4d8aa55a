"""gms-lmm ingest: a raw data set becomes a manifest, or one list of all that is wrong with it."""

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
    help="Draw the split: shares of train and test, which sum to 1."
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
    "--skip-bad", is_flag=True, help="Leave out what is at fault, by name, instead of failing."
)
@json_option
def command(root: str, layout: str, output: str, as_json: bool, **options: Any) -> None:
    """Check every image and mask under ROOT and write the manifest of the data set.

    \b
    Example:
      gms-lmm ingest Dataset_BUSI_with_GT --layout busi -o manifest.parquet
    """
    from pipeline.archive import build_manifest
    from pipeline.archive.checks import fault_lines
    from pipeline.manifest import write_manifest

    with progress_bar("checking", "samples") as progress:
        ingest = build_manifest(root, layout, progress=progress, **options)
    write_manifest(ingest.manifest, output)
    for note in ingest.notes:
        say(f"note: {note}")
    if ingest.quarantined:
        say(f"left out, {len(ingest.quarantined)} faults:")
        say("\n".join(fault_lines(ingest.quarantined)))
    emit(_result(ingest, output), as_json, lambda: _show(ingest.manifest.frame, output))


def _result(ingest: "Ingest", output: str) -> dict[str, Any]:
    import polars as pl

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
        "multi_mask": frame.filter(pl.col("masks").list.len() > 1).height,
        "notes": list(ingest.notes),
        "split": ingest.manifest.settings["split"],
        "root": str(ingest.manifest.root),
        "digest": ingest.manifest.digest,
        "output": output,
    }


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
