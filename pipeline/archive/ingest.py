"""An archive scanned, checked, hashed and split into a manifest, or all its faults at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.archive.checks import IngestError, Row, check_files
from pipeline.archive.layouts import Layout, find_home, layout_named, scan_layout
from pipeline.archive.pairing import Fault
from pipeline.archive.split_files import match_splits, read_split_file
from pipeline.archive.splits import (
    SPLIT,
    VAL_FRACTION,
    assign_splits,
    check_shares,
    hold_out_val,
    tie_duplicates,
)
from pipeline.errors import InputError, UsageError
from pipeline.manifest import SCHEMA, SETTINGS, SPLITS, Manifest
from pipeline.telling import Progress


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
