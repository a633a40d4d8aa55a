"""An archive scanned, checked, hashed and split into a manifest, or all its faults at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.archive.checks import IngestError, Row, check_files
from pipeline.archive.layouts import Layout, find_home, layout_named, scan_layout
from pipeline.archive.notes import notes_on
from pipeline.archive.pairing import Fault
from pipeline.archive.split_files import match_splits, read_split_file
from pipeline.archive.splits import (
    SPLIT,
    VAL_FRACTION,
    assign_splits,
    check_shares,
    draw_folds,
    hold_out_val,
    tie_groups,
)
from pipeline.archive.twins import THRESHOLD, Twin, find_twins
from pipeline.errors import InputError, UsageError
from pipeline.images import ENCLOSED, FULL, Window, parse_foreground, window_of
from pipeline.manifest import SCHEMA, SETTINGS, Manifest
from pipeline.places import place_of
from pipeline.telling import Progress


@dataclass(frozen=True, eq=False)
class Ingest:
    """A manifest as built, what was left out of it and why, and what is worth knowing of it.

    twins       pairs of the manifest's samples whose images are alike, best first; None where they
                were not looked for
    inside_out  samples whose masks are drawn inside out, by name
    """

    manifest: Manifest
    quarantined: tuple[Fault, ...]
    notes: tuple[str, ...]
    twins: tuple[Twin, ...] | None
    inside_out: tuple[str, ...]


def build_manifest(
    root: str | Path,
    layout: str,
    *,
    name: str | None = None,
    split: tuple[float, float] | None = None,
    split_file: str | Path | None = None,
    val_fraction: float = VAL_FRACTION,
    folds: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    include_normal: bool = False,
    mask_suffix: str = "",
    foreground: str | None = None,
    window: Window | None = None,
    twins: bool = True,
    progress: Progress | None = None,
    twin_progress: Progress | None = None,
) -> Ingest:
    """Scan an archive, pair and check every file, and give every sample a split.

    The split is that of `split_file`, or drawn in the shares of `split`; with neither it is the
    archive's official one, or drawn in SPLIT where it has none. val is held out of train unless
    the split names one. Whatever is drawn keeps together byte-identical images, twins and the
    samples of one group.

    name           what `dataset` says; the layout's name when None
    val_fraction   share of train
    folds          deal what is train after that into so many folds
    skip_bad       leave out whatever is at fault, by name, instead of raising; of identical images
                   in two published splits, those outside test are left out
    foreground     colour of the masks' foreground, or ENCLOSED, as `parse_foreground` reads it
    window         of 16-bit images; None for `window_of` the highest value of them all
    twins          whether to look for images that are alike
    progress       called with (samples checked, samples in all)
    twin_progress  called with (images searched for twins, images in all)
    raises         InputError with every fault at once; UsageError for options that do not fit
    """
    known = layout_named(layout)
    colour = _colour(foreground, known)
    check_shares(split or SPLIT, val_fraction)
    home = find_home(place_of(root).resolve(), known)
    named, origin = _published(known, home, split, split_file)
    scan = scan_layout(home, known, include_normal=include_normal, mask_suffix=mask_suffix)
    rows, found = check_files(
        home, scan.entries, labels=known.labels, foreground=colour, progress=progress
    )
    pairs = _find_twins(rows, twin_progress) if twins else []
    faults = [*scan.faults, *found]
    sample_ids = {entry.sample_id for entry in scan.entries} | _spoiled(scan.faults)
    if named is None:
        splits = assign_splits(_units(rows, pairs), split or SPLIT, val_fraction, seed)
    else:
        placed, misplaced = _placed(named, origin, sample_ids, _spoiled(faults))
        rows = [row for row in rows if row["sample_id"] in placed]
        splits = hold_out_val(placed, _units(rows, pairs), val_fraction, seed)
        faults += [*misplaced, *_torn_duplicates(rows, splits)]
    if faults and not skip_bad:
        raise IngestError(home, faults, len(sample_ids))
    left_out = _spoiled(faults)
    rows = [row for row in rows if row["sample_id"] not in left_out]
    _require_some(rows, home, colour)
    pairs = _among(rows, pairs)
    frame = _frame(rows, splits, name or layout, pairs)
    if folds:
        frame = _in_folds(frame, _units(rows, pairs), folds, seed)
    searched = f"found at {THRESHOLD}" if twins else "not looked for"
    settings = dict(zip(SETTINGS, (origin, str(val_fraction), str(seed), searched), strict=True))
    chosen, window_notes = _window(rows, window)
    manifest = Manifest(frame, home, layout, known.labels, settings, chosen, colour)
    inside_out = tuple(sorted(row["sample_id"] for row in rows if row["inside_out"]))
    notes = (*scan.notes, *window_notes, *notes_on(manifest, inside_out))
    return Ingest(manifest, tuple(faults), notes, tuple(pairs) if twins else None, inside_out)


def _colour(foreground: str | None, layout: Layout) -> str | None:
    if foreground and layout.labels:
        message = f"masks of {layout.name} hold labels, not colours"
        raise UsageError(message, "leave out --foreground")
    return parse_foreground(foreground) if foreground else None


def _require_some(rows: Sequence[Row], home: Path, colour: str | None) -> None:
    if not rows:
        raise InputError(f"{home}: no sample is left", "run without --skip-bad, mend what it lists")
    if colour and colour != ENCLOSED and not any(row["foreground_fraction"] for row in rows):
        message = f"{home}: no mask has a pixel of the colour {colour}"
        raise InputError(message, "without --foreground, ingest names the colours it finds")


def _find_twins(rows: Sequence[Row], progress: Progress | None) -> list[Twin]:
    return find_twins({row["sample_id"]: row["thumbnail"] for row in rows}, progress=progress)


def _among(rows: Sequence[Row], pairs: Sequence[Twin]) -> list[Twin]:
    """The twins of which both are there."""
    here = {row["sample_id"] for row in rows}
    return [twin for twin in pairs if twin.first in here and twin.second in here]


def _window(rows: Sequence[Row], wanted: Window | None) -> tuple[Window | None, tuple[str, ...]]:
    """The window for every image of the data set, and a note on how it came about."""
    deep = [row["highest"] for row in rows if row["highest"] is not None]
    if not deep:
        return None, ("no image is of 16 bits: the window changes nothing",) if wanted else ()
    low, high = wanted or window_of(max(deep))
    note = f"{len(deep)} images of 16 bits, highest value {max(deep)}: {low} is black, {high} white"
    return None if (low, high) == FULL else (low, high), (note,)


def _published(
    layout: Layout, home: Path, split: tuple[float, float] | None, split_file: str | Path | None
) -> tuple[dict[str, str] | None, str]:
    """Names with their published split, or None where it is to be drawn; and where it is from."""
    if split and split_file:
        raise UsageError("--split and --split-file exclude each other", "give one of them")
    if split_file:
        return read_split_file(Path(split_file)), Path(split_file).name
    official = None if split else layout.official(home)
    train, test = split or SPLIT
    return official, f"drawn {train}/{test}" if official is None else "official"


def _spoiled(faults: Iterable[Fault]) -> set[str]:
    return {fault.sample_id for fault in faults if fault.sample_id is not None}


def _units(rows: Sequence[Row], pairs: Sequence[Twin]) -> dict[str, str]:
    """The groups that a draw keeps whole."""
    groups = {row["sample_id"]: row["group_id"] for row in rows}
    copies: dict[str, str] = {}
    ties = [
        (copies.setdefault(row["image_sha256"], row["sample_id"]), row["sample_id"]) for row in rows
    ]
    ties += [(twin.first, twin.second) for twin in _among(rows, pairs)]
    return tie_groups(groups, ties)


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
    rows: Sequence[Row], splits: Mapping[str, str], dataset: str, pairs: Sequence[Twin]
) -> pl.DataFrame:
    alone = {row["sample_id"]: row["sample_id"] for row in rows}
    twin_group = tie_groups(alone, ((twin.first, twin.second) for twin in pairs))
    complete = [
        {name: row.get(name) for name in SCHEMA}
        | {"dataset": dataset, "split": splits[sample], "twin_group": twin_group[sample]}
        for sample, row in ((row["sample_id"], row) for row in rows)
    ]
    return pl.DataFrame(complete, schema=SCHEMA).sort("sample_id")


def _in_folds(frame: pl.DataFrame, units: Mapping[str, str], folds: int, seed: int) -> pl.DataFrame:
    """Each sample of train in one of the folds; val, which is to choose epochs, stays apart."""
    classes = dict(frame.filter(split="train").select("sample_id", "class").rows())
    fold_of = draw_folds({sample: units[sample] for sample in classes}, classes, folds, seed)
    fold = pl.col("sample_id").replace_strict(fold_of, default=None, return_dtype=pl.Int32)
    return frame.with_columns(fold=fold)
