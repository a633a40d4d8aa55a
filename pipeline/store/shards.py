"""Shards read and written: whenever a writer dies, no key vouches for data that is not there."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from pipeline.ahead import map_ahead
from pipeline.errors import ArtefactError
from pipeline.store.folder import Folder
from pipeline.store.format import CELL_ARRAYS, decode_bits, decode_chunk
from pipeline.store.keys import cell_checksums

_CELLS_AT_ONCE = 1 << 16  # whose keys are looked at: some 10 MB with what they are made from


class Shards:
    """The shards of a store, each one view of one block of consecutive samples; see format.py.

    arrays   by name, in the order of a cell's checksums
    samples  along the sample axis
    """

    def __init__(self, folder: Folder, arrays: Mapping[str, zarr.Array[Any]], samples: int) -> None:
        self.folder = folder
        self.arrays = arrays
        self.samples = samples

    @cached_property
    def length(self) -> int:
        """Samples in one shard."""
        return int(self.arrays["key"].chunks[1])

    @property
    def blocks(self) -> int:
        """Shards along the sample axis."""
        return -(-self.samples // self.length)

    @property
    def reads_ahead(self) -> int:
        """How many reads to begin before one is needed.

        An object store answers late. On a local disk, reading is the work of the processor, and
        threads that wait for one another's turn made it a quarter slower.
        """
        return 0 if self.folder.is_local else 16

    def rows_of(self, block: int) -> slice:
        """The rows along the sample axis that lie in a block."""
        start = block * self.length
        return slice(start, min(start + self.length, self.samples))

    def spans(self, views: int) -> Iterator[tuple[range, slice]]:
        """All blocks, a bounded number of cells at a time: consecutive blocks and their rows."""
        step = max(1, _CELLS_AT_ONCE // (views * self.length))
        for first in range(0, self.blocks, step):
            blocks = range(first, min(first + step, self.blocks))
            yield blocks, slice(first * self.length, self.rows_of(blocks[-1]).stop)

    def path(self, name: str, view: int, block: int) -> str:
        """Where one shard of one array lies inside the store."""
        return f"{name}/c/{view}/{block}" + "/0" * (self.arrays[name].ndim - 2)

    def read(self, name: str, view: int, block: int, *, bits: bool = False) -> np.ndarray:
        """One shard of one array, not to be written to: [≤ length, …]; see LatentStore.read_shard.

        raises  ArtefactError naming the chunk when it is missing or fails its checksum
        """
        cells = self._read(name, view, block, decode_bits if bits else decode_chunk)
        if cells is None:
            what = f"{self.folder.url}: chunk {self.path(name, view, block)} is missing"
            raise ArtefactError(what, self.mend)
        return cells

    def read_digests(self, name: str, blocks: range) -> np.ndarray:
        """`key` or `checksum` of some blocks, also of views no longer asked for.

        returns  uint8 [views, samples of the blocks, …]; zero where nothing is
        """
        array = self.arrays[name]
        start = blocks.start * self.length
        count = min(blocks.stop * self.length, self.samples) - start
        found = np.zeros((array.shape[0], count, *array.shape[2:]), np.uint8)
        places = [(view, block) for view in range(array.shape[0]) for block in blocks]
        shards = map_ahead(lambda place: self._read(name, *place), places, self.reads_ahead)
        for (view, block), cells in zip(places, shards, strict=True):
            if cells is not None:
                rows = self.rows_of(block)
                found[view, rows.start - start : rows.stop - start] = cells
        return found

    def drop_keys(self, view: int, block: int, inside: np.ndarray) -> np.ndarray:
        """Take their keys from some cells of a shard, so that nothing vouches for their data.

        inside   places of the cells in the shard
        returns  uint8 [≤ length, 16], the shard's keys as they are now
        """
        array, rows = self.arrays["key"], self.rows_of(block)
        keys: np.ndarray = np.array(array[view, rows])
        if keys[inside].any():
            keys[inside] = 0
            array[view, rows] = keys
        return keys

    def write(
        self,
        view: int,
        block: int,
        inside: np.ndarray,
        wanted_keys: np.ndarray,
        cells: Mapping[str, np.ndarray],
    ) -> None:
        """Put cells into a shard, in this order: their keys zeroed, data, checksums, new keys.

        inside       places of the n cells in the shard
        wanted_keys  uint8 [n, 16]
        cells        [n, …] for each data array
        raises       ArtefactError when the shard's other cells, which stay, are missing or damaged
        """
        rows = self.rows_of(block)
        keys = self.drop_keys(view, block, inside)
        others = np.delete(keys, inside, axis=0).any()
        data = {name: cells[name] for name in self.arrays if name not in CELL_ARRAYS}
        for name, values in {**data, "checksum": cell_checksums(wanted_keys, data)}.items():
            if others:
                # Never straight from zarr, which gives the fill value for a chunk that was lost.
                shard = self.read(name, view, block).copy()
            else:
                fill = self.arrays[name].fill_value
                shard = np.full((len(keys), *values.shape[1:]), fill, values.dtype)
            shard[inside] = values
            self.arrays[name][view, rows] = shard
        keys[inside] = wanted_keys
        self.arrays["key"][view, rows] = keys

    def _read(
        self,
        name: str,
        view: int,
        block: int,
        decode: Callable[[bytes, zarr.Array[Any]], np.ndarray] = decode_chunk,
    ) -> np.ndarray | None:
        """One shard of one array; None where there is no such file."""
        chunk, rows = self.path(name, view, block), self.rows_of(block)
        try:
            content = self.folder.read(chunk)
        except FileNotFoundError:
            return None
        try:
            return decode(content, self.arrays[name])[: rows.stop - rows.start]
        except Exception as error:  # each codec raises a type of its own on damaged bytes
            what = f"{self.folder.url}: chunk {chunk} is damaged: {error}"
            raise ArtefactError(what, self.mend) from error

    @property
    def mend(self) -> str:
        """What to do about a shard that is not as it should be."""
        url = self.folder.url
        return f"gms-lmm verify {url} names all that is damaged, encode --repair mends it"
