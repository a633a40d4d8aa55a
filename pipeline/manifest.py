"""The manifest: one row a sample, checked, hashed and split; built once, read by every step."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import ArtefactError, UsageError
from pipeline.files import replacing
from pipeline.images import Window
from pipeline.places import is_folder, place_of
from pipeline.telling import some_of

FORMAT_VERSION = 2
ARTEFACT = "gms-lmm manifest"
SPLITS = ("train", "val", "test")
SETTINGS = ("split", "val_fraction", "seed", "twins")
SCHEMA: dict[str, pl.DataType] = {
    "sample_id": pl.String(),
    "dataset": pl.String(),
    "split": pl.String(),
    "group_id": pl.String(),
    "class": pl.String(),
    "image": pl.String(),
    "masks": pl.List(pl.String()),
    "height": pl.Int32(),
    "width": pl.Int32(),
    "image_sha256": pl.String(),
    "mask_sha256": pl.String(),
    "foreground_fraction": pl.Float64(),
    "twin_group": pl.String(),
    "fold": pl.Int32(),
}
# Columns that say how a data set is divided, not what is in it: nothing encoded depends on them.
DIVISION = ("split", "twin_group", "fold")
# Of the whole data set, and yet columns: whoever filters a table keeps its columns, and loses
# what else a parquet file says.
WHOLE: dict[str, pl.DataType] = {
    "root": pl.String(),
    "layout": pl.String(),
    "labels": pl.Boolean(),
    "window": pl.List(pl.Int32()),
    "foreground": pl.String(),
}


@dataclass(frozen=True, eq=False)
class Manifest:
    """The samples of one data set.

    frame       one row a sample in plain order of sample_id, columns as in SCHEMA; `class` is null
                where the archive has none; `image_sha256` is over the file's bytes, `mask_sha256`
                over the bytes of all the sample's mask files in the order of `masks`; `twin_group`
                is the least sample_id of the images that are twins; `fold` is null without folds
    root        absolute folder that `image` and `masks` are relative to, as `place_of` gives it
    layout      name of the layout that the archive has
    labels      whether masks hold object labels, to be read with read_union(..., labels=True)
    settings    how the splits came about: split, val_fraction, seed, twins; empty for a manifest
                that has been through other hands
    window      of 16-bit images, for read_image; None for their full range
    foreground  '#rrggbb' of the masks' foreground, or ENCLOSED, for read_union; None for what is
                not black
    """

    frame: pl.DataFrame
    root: Path
    layout: str
    labels: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    window: Window | None = None
    foreground: str | None = None

    @property
    def digest(self) -> str:
        """sha256, hex, over every row as JSON; root and file bytes play no part.

        Split, twin_group and fold are left out, because they change nothing that is encoded.
        """
        digest = hashlib.sha256()
        content = self.frame.drop(DIVISION, strict=False).sort("sample_id")
        for row in content.iter_rows(named=True):
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    @property
    def mask_values(self) -> str:
        """How masks are read: `labels`, `binary`, `enclosed`, or '#rrggbb' of the foreground."""
        return self.foreground or ("labels" if self.labels else "binary")

    def image_path(self, row: Mapping[str, Any]) -> Path:
        """Where the image of a row of `frame` lies."""
        return self.root / str(row["image"])

    def mask_paths(self, row: Mapping[str, Any]) -> list[Path]:
        """Where the masks of a row of `frame` lie; the sample's mask is their union."""
        return [self.root / mask for mask in row["masks"]]


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as parquet, at once or not at all; the same manifest gives the same bytes.

    What is of the whole data set (WHOLE) goes into columns of one value. The parquet metadata
    holds artefact, format_version and the settings, as text.

    raises     UsageError when the place cannot be written
    """
    path = Path(path)
    metadata = {"artefact": ARTEFACT, "format_version": str(FORMAT_VERSION), **manifest.settings}
    whole = {
        "root": str(manifest.root),
        "layout": manifest.layout,
        "labels": manifest.labels,
        "window": manifest.window and list(manifest.window),
        "foreground": manifest.foreground,
    }
    columns = [pl.lit(whole[name], dtype).alias(name) for name, dtype in WHOLE.items()]
    try:
        with replacing(path) as partial:
            manifest.frame.with_columns(columns).write_parquet(partial, metadata=metadata)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise UsageError(message, "choose another place with --output") from error


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest, as write_manifest wrote it or as another program has rewritten its table.

    Rows may be filtered, changed and put in another order; columns of others are left aside.

    raises     ArtefactError when it is missing, something else, of another format version, without
               rows, with rows that are not a manifest's or of several data sets, or when the folder
               with its images has gone
    """
    again = f"gms-lmm ingest ROOT --layout NAME -o {path}"
    if not Path(path).is_file():
        raise ArtefactError(f"{path}: no such manifest", again)
    try:
        metadata = pl.read_parquet_metadata(path)
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ArtefactError(f"{path}: not a manifest: {error}", again) from error
    version = metadata.get("format_version", str(FORMAT_VERSION))
    if metadata.get("artefact") == ARTEFACT and version != str(FORMAT_VERSION):
        message = f"{path}: manifest of format {version}; this gms-lmm reads {FORMAT_VERSION}"
        raise ArtefactError(message, again)
    columns = SCHEMA | WHOLE
    if missing := [name for name in columns if name not in table.columns]:
        message = f"{path}: not a manifest: it lacks the columns {some_of(missing)}"
        raise ArtefactError(message, again)
    try:
        table = table.select(list(columns)).cast(pl.Schema(columns))
    except pl.exceptions.PolarsError as error:
        raise ArtefactError(f"{path}: its columns are not a manifest's: {error}", again) from error
    if fault := _fault(table):
        raise ArtefactError(f"{path}: {fault}", f"mend the table, or {again}")
    whole = table.select(list(WHOLE)).row(0, named=True)
    root = place_of(whole.pop("root"))
    if not is_folder(root):
        raise ArtefactError(f"{path}: its images were in {root}, which has gone", again)
    settings = {key: metadata[key] for key in SETTINGS if key in metadata}
    window = whole.pop("window")
    frame = table.select(list(SCHEMA)).sort("sample_id")
    return Manifest(frame, root, **whole, settings=settings, window=window and (*window,))


def _fault(table: pl.DataFrame) -> str | None:
    """What other hands may have left in a table that is then no manifest."""
    if table.is_empty():
        return "it has no rows"
    for name in WHOLE:
        if table[name].n_unique() > 1:
            return f"its rows differ in {name}; a manifest is of one data set"
    given = [name for name in SCHEMA if name not in ("class", "fold")] + [
        "root",
        "layout",
        "labels",
    ]
    if empty := [name for name in given if table[name].has_nulls()]:
        return f"empty cells in {some_of(empty)}"
    if twice := table.filter(pl.col("sample_id").is_duplicated())["sample_id"].unique().to_list():
        return f"{len(twice)} samples stand in several rows: {some_of(sorted(twice))}"
    strange = set(table["split"]) - set(SPLITS)
    if strange:
        return f"unknown split {some_of(sorted(map(repr, strange)))}: train, val and test are known"
    return None
