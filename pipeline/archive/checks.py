"""Every image and mask of a scan opened once: decoded, compared, hashed; faults in one list."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.archive.pairing import Entry, Fault
from pipeline.archive.twins import thumbnail
from pipeline.errors import InputError
from pipeline.files import sha256_of
from pipeline.images import ENCLOSED, ImageError, Mask, is_inside_out, read_pixels, read_union
from pipeline.telling import SHOWN, Progress, some_of

Row = dict[str, Any]

LINES_SHOWN = 20
NAME_FAULTS = {
    "unknown-name": "names of the split match no sample ({file})",
    "unnamed": "samples are not named by the split ({file})",
}


class IngestError(InputError):
    """All that is wrong with an archive at once; `faults` and `names` hold every one of them.

    names      the names of a split file that match no sample
    """

    def __init__(self, root: Path, faults: Sequence[Fault], total: int) -> None:
        self.faults = tuple(faults)
        self.names = tuple(f.sample_id for f in faults if f.kind == "unknown-name" and f.sample_id)
        fix = "repair or remove these, or add --skip-bad to leave them out by name"
        super().__init__("\n".join([_headline(root, faults, total), *fault_lines(faults)]), fix)


def check_files(
    home: Path,
    entries: Sequence[Entry],
    *,
    labels: bool = False,
    foreground: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[Row], list[Fault]]:
    """What each sample's files hold, as manifest rows without dataset and split; and all faults.

    A row also has `thumbnail`, for `find_twins`; `highest`, the highest value of an image of 16
    bits, None of any other; and `inside_out`, whether a two-valued mask is drawn so. Masks are read
    by `labels` and `foreground` as `read_mask` does.

    Threads, since Pillow decodes outside the interpreter's lock. `progress` is called with
    (samples done, samples in all), in the caller's thread.
    """
    checked: list[tuple[Row | None, list[Fault]]] = []
    for result in map_ahead(lambda entry: _check(home, entry, labels, foreground), entries):
        checked.append(result)
        if progress:
            progress(len(checked), len(entries))
    rows = [row for row, _ in checked if row is not None]
    return rows, [fault for _, faults in checked for fault in faults]


def fault_lines(faults: Iterable[Fault]) -> list[str]:
    """Faults for people: a line each up to a limit, names of a split file gathered into one."""
    listed = list(faults)
    files = [f"  {fault.file}: {fault.detail}" for fault in listed if fault.kind not in NAME_FAULTS]
    lines = files[:LINES_SHOWN]
    if len(files) > LINES_SHOWN:
        lines.append(f"  and {len(files) - LINES_SHOWN} more")
    for kind, words in NAME_FAULTS.items():
        if of_kind := [fault for fault in listed if fault.kind == kind]:
            names = some_of(str(fault.sample_id) for fault in of_kind)
            lines.append(f"  {len(of_kind)} {words.format(file=of_kind[0].file)}: {names}")
    if len(listed) > SHOWN:
        lines.append("  every one by name: --skip-bad --json")
    return lines


def _headline(root: Path, faults: Sequence[Fault], total: int) -> str:
    spoiled = len({fault.sample_id for fault in faults if fault.kind != "unknown-name"})
    if spoiled:
        return f"{spoiled} of {total} samples in {root} cannot be used; nothing was written:"
    return f"the split does not fit the {total} samples in {root}; nothing was written:"


def _check(
    home: Path, entry: Entry, labels: bool, foreground: str | None
) -> tuple[Row | None, list[Fault]]:
    faults: list[Fault] = []
    image = mask = None
    try:
        image = read_pixels(entry.image)
    except ImageError as error:
        faults.append(_fault(home, entry, error.path, error.kind, error.detail))
    try:
        mask = read_union(entry.masks, labels=labels, foreground=foreground)
    except ImageError as error:
        faults.append(_fault(home, entry, error.path, error.kind, error.detail))
    if image is None or mask is None:
        return None, faults
    height, width = mask.shape
    if image.shape[:2] != (height, width):
        size = f"{image.shape[1]} × {image.shape[0]}"
        detail = f"mask is {width} × {height} but its image is {size} (width × height)"
        return None, [_fault(home, entry, entry.masks[0], "size", detail)]
    row = {
        "sample_id": entry.sample_id,
        "group_id": entry.group_id,
        "class": entry.sample_class,
        "image": entry.image.relative_to(home).as_posix(),
        "masks": [path.relative_to(home).as_posix() for path in entry.masks],
        "height": height,
        "width": width,
        "image_sha256": sha256_of([entry.image]),
        "mask_sha256": sha256_of(entry.masks),
        "foreground_fraction": float(mask.mean()),
        "thumbnail": thumbnail(image),
        "highest": int(image.max()) if image.dtype == np.uint16 else None,
        "inside_out": not labels and _drawn_inside_out(entry, mask, foreground),
    }
    return row, faults


def _drawn_inside_out(entry: Entry, mask: Mask, foreground: str | None) -> bool:
    if foreground == ENCLOSED:
        return bool((read_union(entry.masks) != mask).any())
    return foreground is None and is_inside_out(mask)


def _fault(home: Path, entry: Entry, path: Path, kind: str, detail: str) -> Fault:
    return Fault(path.relative_to(home).as_posix(), kind, detail, entry.sample_id)
