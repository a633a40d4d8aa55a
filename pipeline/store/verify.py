"""Whether every byte of a store is right: each fault by array, view and sample, and what mends it.

Checksums say whether a cell holds what was encoded into it, keys whether that is what was asked
for, the receipt whether the whole is what was finished; encoding some cells again tests it all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.errors import ArtefactError
from pipeline.files import PARTIAL
from pipeline.store.finish import array_digests, drop_receipt
from pipeline.store.format import GROUP_FILE, KEY_BYTES, RECEIPT_FILE, SAMPLES_FILE
from pipeline.store.keys import cell_checksums
from pipeline.store.latent_store import LatentStore
from pipeline.store.receipt import is_of
from pipeline.telling import Progress

_AHEAD = 8  # shards in memory, about 10 MB each


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a store.

    what        one sentence for people
    array, view where it lies; None where it is not in an array
    rows        the samples of the cells that cannot be used, as places along the sample axis
    file        path inside the store, where a file is what is wrong
    """

    kind: str
    what: str
    array: str | None = None
    view: int | None = None
    rows: tuple[int, ...] = ()
    file: str | None = None

    def describe(self, store: LatentStore) -> dict[str, Any]:
        """The fault as JSON types, samples by their id."""
        ids = store.samples["sample_id"].gather(list(self.rows)).to_list()
        return {
            "kind": self.kind,
            "what": self.what,
            "array": self.array,
            "view": self.view,
            "sample_ids": ids,
            "file": self.file,
        }


def verify(store: LatentStore, progress: Progress | None = None) -> tuple[int, list[Fault]]:
    """Read every cell that has a key and hold it against its checksum, then files and receipt.

    progress  called with (shards read, shards there are)
    returns   how many cells were read, and the faults
    """
    faults = list(_foreign_files(store))
    checked, absent = 0, np.zeros((store.views, len(store.samples)), np.bool_)
    places = [(view, block) for block in range(store.blocks()) for view in range(store.views)]
    checks = map_ahead(lambda place: _check_shard(store, *place), places, ahead=_AHEAD)
    for done, ((view, block), (stored, found)) in enumerate(zip(places, checks, strict=True), 1):
        checked += int(_held(stored).sum())
        differs = (stored != store.wanted_keys(view, block)).any(axis=1)
        absent[view, store.rows_of(block)] = differs
        faults += found
        if progress:
            progress(done, len(places))
    faults += _damaged_keys_of_former_views(store)
    return checked, faults + list(_receipt_faults(store, absent & store.wanted, faults))


def _check_shard(store: LatentStore, view: int, block: int) -> tuple[np.ndarray, list[Fault]]:
    """The shard's keys, zero where they cannot be read, and what is wrong with its cells."""
    rows = store.rows_of(block)
    nothing = np.zeros((rows.stop - rows.start, KEY_BYTES), np.uint8)
    if store.chunk_path("key", view, block) not in store.files:
        return nothing, []  # never finished, which shows when the keys are held against the wanted
    read: dict[str, np.ndarray] = {}
    faults = []
    for name in store.arrays[::-1]:  # without keys the rest means nothing
        try:
            read[name] = store.read_shard(name, view, block)
        except ArtefactError as error:
            file = store.chunk_path(name, view, block)
            kind = "damaged" if file in store.files else "missing"
            what = error.message.removeprefix(f"{store.url}: ")
            lost = np.ones(len(nothing), np.bool_) if name == "key" else _held(read["key"])
            if lost.any():
                faults.append(Fault(kind, what, name, view, _places(rows.start, lost), file))
            if name == "key":
                return nothing, faults
    return read["key"], faults + list(_content_faults(store, view, rows.start, read))


def _damaged_keys_of_former_views(store: LatentStore) -> Iterator[Fault]:
    """Of views no longer asked for, which an encode would want to take up again."""
    for view, block in np.ndindex(store.array("key").shape[0] - store.views, store.blocks()):
        file = store.chunk_path("key", store.views + view, block)
        try:
            if file in store.files:
                store.read_shard("key", store.views + view, block)
        except ArtefactError as error:
            rows = store.rows_of(block)
            what = error.message.removeprefix(f"{store.url}: ")
            places = tuple(range(rows.start, rows.stop))
            yield Fault("damaged", what, "key", store.views + view, places, file)


def _content_faults(
    store: LatentStore, view: int, start: int, read: dict[str, np.ndarray]
) -> Iterator[Fault]:
    if "checksum" not in read:
        return
    held = _held(read["key"])
    for column, name in enumerate(store.data_arrays):
        if name not in read:
            continue
        found = cell_checksums(read["key"][held], {name: read[name][held]})[:, 0]
        wrong = held.copy()
        wrong[held] = (found != read["checksum"][held, column]).any(axis=1)
        if wrong.any():
            what = f"{name} of view {view} holds something else than was encoded there"
            yield Fault("other content", what, name, view, _places(start, wrong))


def _held(keys: np.ndarray) -> np.ndarray:
    """Which cells have a key; bool [n]."""
    return np.asarray(keys.any(axis=1))


def _places(start: int, mask: np.ndarray) -> tuple[int, ...]:
    return tuple((start + np.flatnonzero(mask)).tolist())


def _foreign_files(store: LatentStore) -> Iterator[Fault]:
    for file in sorted(file for file in store.files if not _belongs(store, file)):
        # What a killed writer leaves is never read, and goes when the store is finished.
        if not file.endswith(PARTIAL):
            yield Fault("foreign file", f"{file} does not belong to the store", file=file)


def _belongs(store: LatentStore, file: str) -> bool:
    """Whether a file is one of the store's by its place."""
    if file in (GROUP_FILE, SAMPLES_FILE, RECEIPT_FILE):
        return True
    name, *place = file.split("/")
    if name not in store.arrays:
        return False
    if len(place) < 3 or not (place[1].isdecimal() and place[2].isdecimal()):
        return place == [GROUP_FILE]
    view, block = int(place[1]), int(place[2])
    views, blocks = store.array(name).cdata_shape[:2]
    return view < views and block < blocks and file == store.chunk_path(name, view, block)


def _receipt_faults(store: LatentStore, absent: np.ndarray, faults: list[Fault]) -> Iterator[Fault]:
    """Live cells that are not what is wanted, and what the receipt says; `faults` are those found.

    absent  bool [view, sample]
    """
    for fault in faults:
        if fault.array == "key" and fault.view in range(store.views):  # named already
            absent[fault.view, list(fault.rows)] = False
    for view in np.flatnonzero(absent.any(axis=1)).tolist():
        rows = _places(0, absent[view])
        what = f"{len(rows)} cells of view {view} are not encoded"
        yield Fault("unfinished", what, view=view, rows=rows)
    receipt = store.receipt()
    if receipt is None:
        if not absent.any() and not faults:
            yield Fault("unfinished", "every cell is encoded, but there is no receipt")
        return
    if not is_of(receipt, store.attributes, store.samples):
        yield Fault("other receipt", "receipt.json is that of another store", file=RECEIPT_FILE)
    # Where faults were found, the digests are known to differ.
    elif not faults and not absent.any() and receipt.get("arrays") != array_digests(store):
        what = "receipt.json has other digests than the arrays"
        yield Fault("other receipt", what, file=RECEIPT_FILE)


def mend(store: LatentStore, faults: list[Fault]) -> list[str]:
    """Undo what stands in the way of encoding again what is faulty, and nothing else.

    Cells that cannot be used lose their key, foreign files are moved out of the store, another
    store's receipt goes.

    returns  where the foreign files lie now
    """
    if faults:
        drop_receipt(store)
    moved = []
    for fault in faults:
        if fault.array == "key":
            store.folder.remove(str(fault.file))
        elif fault.view is not None and fault.array is not None:
            block = fault.rows[0] // store.shard_samples
            inside = np.array(fault.rows) - store.rows_of(block).start
            store.shards.drop_keys(fault.view, block, inside)
        elif fault.kind == "foreign file":
            moved.append(store.folder.move_out(str(fault.file)))
    return moved
