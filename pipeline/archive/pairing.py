"""Files of an archive paired into samples, and every file without a partner named as a fault."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.archive.split_files import read_rows
from pipeline.errors import InputError


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one file or name; `sample_id` is the sample it spoils, if any."""

    file: str
    kind: str
    detail: str
    sample_id: str | None = None


@dataclass(frozen=True)
class Entry:
    """One sample as the archive lays it out; paths are absolute, `sample_class` may be unknown."""

    sample_id: str
    image: Path
    masks: tuple[Path, ...]
    group_id: str
    sample_class: str | None = None


@dataclass(frozen=True)
class Scan:
    """What an archive holds: its samples, what is wrong with the rest, and what was passed over."""

    entries: tuple[Entry, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = ()


def pair_by_stem(
    home: Path, images: Iterable[Path], masks: Mapping[Path, str], notes: tuple[str, ...] = ()
) -> Scan:
    """Pair each image with the masks that name its stem (`masks`: mask → stem of its image)."""
    images_of: dict[str, list[Path]] = {}
    for path in images:
        images_of.setdefault(path.stem, []).append(path)
    masks_of: dict[str, list[Path]] = {}
    for path, stem in masks.items():
        masks_of.setdefault(stem, []).append(path)
    entries, faults = [], []
    for stem in sorted(images_of.keys() | masks_of.keys()):
        pictures, own = images_of.get(stem, []), masks_of.get(stem, [])
        files = ", ".join(_relative(path, home) for path in pictures or own)
        if not pictures:
            faults.append(Fault(files, "no-image", f"mask without an image {stem!r}", stem))
        elif len(pictures) > 1:
            detail = f"{len(pictures)} images have the stem {stem!r}"
            faults.append(Fault(files, "same-stem", detail, stem))
        elif not own:
            faults.append(Fault(files, "no-mask", "image without a mask", stem))
        else:
            entries.append(Entry(stem, pictures[0], tuple(own), group_id=stem))
    return Scan(tuple(entries), tuple(faults), notes)


def single_masks(scan: Scan, home: Path) -> Scan:
    """The scan of an archive in which two masks of one image are a mistake."""
    doubled = [
        Fault(
            ", ".join(_relative(mask, home) for mask in entry.masks),
            "same-stem",
            f"{len(entry.masks)} masks belong to the image {entry.sample_id!r}",
            entry.sample_id,
        )
        for entry in scan.entries
        if len(entry.masks) > 1
    ]
    single = tuple(entry for entry in scan.entries if len(entry.masks) == 1)
    return replace(scan, entries=single, faults=(*scan.faults, *doubled))


def described(scan: Scan, home: Path, table: Path, key: str, group: str, kind: str) -> Scan:
    """Entries with group and class from the archive's own table; a fault where it has no row."""
    if not table.is_file():
        message = f"{home}: no {table.name}, which says what samples belong together"
        raise InputError(message, f"put {table.name} back from the archive")
    rows = {row[key]: row for row in read_rows(table, (key, group, kind))}
    entries, orphans = [], []
    for entry in scan.entries:
        if row := rows.get(entry.sample_id):
            entries.append(replace(entry, group_id=row[group], sample_class=row[kind]))
        else:
            file, detail = _relative(entry.image, home), f"image without a row in {table.name}"
            orphans.append(Fault(file, "no-metadata", detail, entry.sample_id))
    return replace(scan, entries=tuple(entries), faults=(*scan.faults, *orphans))


def _relative(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix()
