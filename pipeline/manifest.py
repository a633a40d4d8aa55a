"""The manifest: one row a sample, checked, hashed and split; built once, read by every step."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import ArtefactError, UsageError

FORMAT_VERSION = 1
ARTEFACT = "gms-lmm manifest"
SPLITS = ("train", "val", "test")
SETTINGS = ("split", "val_fraction", "seed")
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
}


@dataclass(frozen=True, eq=False)
class Manifest:
    """The samples of one data set.

    frame      one row a sample in plain order of sample_id, columns as in SCHEMA; `class` is null
               where the archive has none; `image_sha256` is over the file's bytes, `mask_sha256`
               over the bytes of all the sample's mask files in the order of `masks`
    root       absolute folder that `image` and `masks` are relative to
    layout     name of the layout that the archive has
    labels     whether masks hold object labels, to be read with read_union(..., labels=True)
    settings   how the splits came about: split, val_fraction, seed
    """

    frame: pl.DataFrame
    root: Path
    layout: str
    labels: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256, hex, over every row as JSON without its split; root and file bytes play no part.

        The split is left out because a changed split changes nothing that is encoded.
        """
        digest = hashlib.sha256()
        for row in self.frame.drop("split").sort("sample_id").iter_rows(named=True):
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()

    def image_path(self, row: Mapping[str, Any]) -> Path:
        """Where the image of a row of `frame` lies."""
        return self.root / str(row["image"])

    def mask_paths(self, row: Mapping[str, Any]) -> list[Path]:
        """Where the masks of a row of `frame` lie; the sample's mask is their union."""
        return [self.root / mask for mask in row["masks"]]


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest as parquet, at once or not at all; the same manifest gives the same bytes.

    What is not a column goes into the parquet metadata as text: artefact, format_version, root,
    layout, labels, and the settings.

    raises     UsageError when the place cannot be written
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    metadata = {
        "artefact": ARTEFACT,
        "format_version": str(FORMAT_VERSION),
        "root": str(manifest.root),
        "layout": manifest.layout,
        "labels": str(manifest.labels).lower(),
        **manifest.settings,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest.frame.write_parquet(unfinished, metadata=metadata)
        unfinished.replace(path)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise UsageError(message, "choose another place with --output") from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest that write_manifest wrote.

    raises     ArtefactError when it is missing, something else, of another format version, or
               when the folder with its images has gone
    """
    again = f"gms-lmm ingest ROOT --layout NAME -o {path}"
    if not Path(path).is_file():
        raise ArtefactError(f"{path}: no such manifest", again)
    try:
        metadata = pl.read_parquet_metadata(path)
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ArtefactError(f"{path}: not a manifest: {error}", again) from error
    if metadata.get("artefact") != ARTEFACT:
        raise ArtefactError(f"{path}: a parquet file, but not a manifest", again)
    if (version := metadata["format_version"]) != str(FORMAT_VERSION):
        message = f"{path}: manifest of format {version}; this gms-lmm reads {FORMAT_VERSION}"
        raise ArtefactError(message, again)
    if dict(frame.schema) != SCHEMA:
        raise ArtefactError(f"{path}: its columns are not a manifest's", again)
    root = Path(metadata["root"])
    if not root.is_dir():
        raise ArtefactError(f"{path}: its images were in {root}, which has gone", again)
    settings = {key: metadata[key] for key in SETTINGS}
    return Manifest(frame, root, metadata["layout"], metadata["labels"] == "true", settings)
