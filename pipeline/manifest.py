"""The manifest: one row a sample, checked, hashed and split; built once, read by every step."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.checks import IngestError, Progress, Row, check_files
from pipeline.errors import ArtefactError, InputError, UsageError
from pipeline.layouts import Layout, find_home, layout_named, scan_layout
from pipeline.pairing import Fault
from pipeline.splits import (
    SPLIT,
    SPLITS,
    VAL_FRACTION,
    assign_splits,
    check_shares,
    hold_out_val,
    match_splits,
    read_split_file,
    tie_duplicates,
)

FORMAT_VERSION = 1
ARTEFACT = "gms-lmm manifest"
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


@dataclass(frozen=True, eq=False)
class Ingest:
    """A manifest as built, what was left out of it and why, and what is worth knowing of it."""

    manifest: Manifest
    quarantined: tuple[Fault, ...]
    notes: tuple[str, ...]


def build_manifest(
    root: str | Path,
    layout: str,
    *,
    name: str | None = None,
    split: tuple[float, float] | None = None,
    split_file: str | Path | None = None,
    val_fraction: float = VAL_FRACTION,
    seed: int = 0,
    skip_bad: bool = False,
    include_normal: bool = False,
    mask_suffix: str = "",
    progress: Progress | None = None,
) -> Ingest:
    """Scan an archive, pair and check every file, and give every sample a split.

    The split is that of `split_file`, or drawn in the shares of `split`; with neither it is the
    archive's official one, or drawn in SPLIT where it has none. Byte-identical images are never
    drawn apart. val is held out of train unless the split names one.

    name       what `dataset` says; the layout's name when None
    skip_bad   leave out whatever is at fault, by name, instead of raising; of identical images in
               two published splits, those outside test are left out
    progress   called with (samples checked, samples in all)
    raises     InputError with every fault at once; UsageError for options that do not fit
    """
    if split and split_file:
        raise UsageError("--split and --split-file exclude each other", "give one of them")
    check_shares(split or SPLIT, val_fraction)
    known = layout_named(layout)
    home = find_home(Path(root).resolve(), known)
    named, origin = _published(known, home, split, split_file)
    scan = scan_layout(home, known, include_normal=include_normal, mask_suffix=mask_suffix)
    rows, found = check_files(home, scan.entries, labels=known.labels, progress=progress)
    faults = [*scan.faults, *found]
    sample_ids = {entry.sample_id for entry in scan.entries} | _spoiled(scan.faults)
    if named is None:
        splits = assign_splits(_units(rows), split or SPLIT, val_fraction, seed)
    else:
        placed, misplaced = _placed(named, origin, sample_ids, _spoiled(faults))
        rows = [row for row in rows if row["sample_id"] in placed]
        splits = hold_out_val(placed, _units(rows), val_fraction, seed)
        faults += [*misplaced, *_torn_duplicates(rows, splits)]
    if faults and not skip_bad:
        raise IngestError(home, faults, len(sample_ids))
    frame = _frame(rows, splits, name or layout, without=_spoiled(faults))
    if frame.is_empty():
        raise InputError(f"{home}: no sample is left", "run without --skip-bad, mend what it lists")
    settings = dict(zip(SETTINGS, (origin, str(val_fraction), str(seed)), strict=True))
    manifest = Manifest(frame, home, layout, known.labels, settings)
    return Ingest(manifest, tuple(faults), (*scan.notes, *_notes(frame, origin)))


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


def _published(
    layout: Layout, home: Path, split: tuple[float, float] | None, split_file: str | Path | None
) -> tuple[dict[str, str] | None, str]:
    """Names with their published split, or None where it is to be drawn; and where it is from."""
    if split_file:
        return read_split_file(Path(split_file)), Path(split_file).name
    official = None if split else layout.official(home)
    train, test = split or SPLIT
    return official, f"drawn {train}/{test}" if official is None else "official"


def _spoiled(faults: Iterable[Fault]) -> set[str]:
    return {fault.sample_id for fault in faults if fault.sample_id is not None}


def _units(rows: Sequence[Row]) -> dict[str, str]:
    """The groups that a draw keeps whole."""
    groups = {row["sample_id"]: row["group_id"] for row in rows}
    return tie_duplicates(groups, {row["sample_id"]: row["image_sha256"] for row in rows})


def _placed(
    named: Mapping[str, str], origin: str, sample_ids: set[str], spoiled: set[str]
) -> tuple[dict[str, str], list[Fault]]:
    """Splits of the sound samples by name, and the names that fit no sample or more than one."""
    match = match_splits(named, sample_ids)
    clashing = {sample: group for group in match.clashes for sample in group}
    faults = [
        Fault(origin, "unknown-name", f"{name!r} matches no sample", name) for name in match.unknown
    ]
    faults += [
        Fault(origin, "unnamed", f"{sample!r} is in no split", sample)
        for sample in match.unnamed
        if sample not in spoiled
    ]
    faults += [
        Fault(sample, "same-name", f"one name to a split file: {', '.join(group)}", sample)
        for sample, group in clashing.items()
    ]
    bad = spoiled | clashing.keys()
    return {sample: split for sample, split in match.splits.items() if sample not in bad}, faults


def _torn_duplicates(rows: Sequence[Row], splits: Mapping[str, str]) -> list[Fault]:
    """Byte-identical images that a published split puts apart; the copies in test are kept."""
    copies: dict[str, list[Row]] = {}
    for row in rows:
        copies.setdefault(row["image_sha256"], []).append(row)
    faults = []
    for alike in copies.values():
        held = [splits[row["sample_id"]] for row in alike]
        kept = "test" if "test" in held else "val"
        words = ", ".join(f"{row['sample_id']} ({splits[row['sample_id']]})" for row in alike)
        faults += [
            Fault(
                row["image"],
                "duplicate",
                f"identical bytes in two splits: {words}",
                row["sample_id"],
            )
            for row, split in zip(alike, held, strict=True)
            if len(set(held)) > 1 and split != kept
        ]
    return faults


def _frame(
    rows: Sequence[Row], splits: Mapping[str, str], dataset: str, without: set[str]
) -> pl.DataFrame:
    complete = [
        row | {"dataset": dataset, "split": splits[row["sample_id"]]}
        for row in rows
        if row["sample_id"] not in without
    ]
    return pl.DataFrame(complete, schema=SCHEMA).sort("sample_id")


def _notes(frame: pl.DataFrame, origin: str) -> list[str]:
    """What is no fault but worth knowing."""
    notes = []
    groups = frame.group_by("group_id").agg(pl.col("split").n_unique())
    if torn := groups.filter(pl.col("split") > 1).height:
        notes.append(f"{torn} of {groups.height} groups stand in several splits ({origin})")
    alike = frame.group_by("image_sha256").agg(pl.col("sample_id").sort())
    notes += [
        f"identical images, in one split: {', '.join(names)}"
        for names in sorted(alike.get_column("sample_id").to_list())
        if len(names) > 1
    ]
    if empty := frame.filter(pl.col("foreground_fraction") == 0).height:
        notes.append(f"{empty} samples have an empty mask")
    missing = [split for split in SPLITS if split not in set(frame["split"])]
    notes += [f"no sample is in {split}" for split in missing]
    return notes
