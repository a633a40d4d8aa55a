"""A block of samples as it is encoded: its shards, made of the same pixels, written one by one."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.encode.cells import CellEncoder
from pipeline.errors import ArtefactError
from pipeline.store import LatentStore


@dataclass(frozen=True)
class Pixels:
    """Decoded samples of one block.

    places  (n,) along the store's sample axis, ascending
    images  (n, 3, S, S) uint8
    masks   (n, S, S) bool
    """

    places: np.ndarray
    images: torch.Tensor
    masks: torch.Tensor


@dataclass(frozen=True)
class Shard:
    """One view of the samples of one block: the unit that is encoded, written and keyed whole."""

    view: int
    block: int
    rows: np.ndarray  # places, along the store's sample axis, of the cells to encode


def missing_cells(store: LatentStore, block: int) -> np.ndarray:
    """Which cells of a block are to be there and do not hold what is asked for; bool [view, n]."""
    rows = store.rows_of(block)
    missing: np.ndarray = store.wanted[:, rows] & ~store.present_in(range(block, block + 1), rows)
    return missing


def shards_of(store: LatentStore, block: int, todo: np.ndarray) -> list[Shard]:
    """The shards of a block with cells to encode; todo is bool [view, n]."""
    start = store.rows_of(block).start
    return [
        Shard(view, block, start + np.flatnonzero(todo[view]))
        for view in np.flatnonzero(todo.any(axis=1)).tolist()
    ]


def stack_pixels(places: np.ndarray, decoded: Iterable[tuple[np.ndarray, np.ndarray]]) -> Pixels:
    """Samples as `decode_sample` gives them, as one."""
    images, masks = zip(*decoded, strict=True)
    images_u8 = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return Pixels(places, images_u8, torch.from_numpy(np.stack(masks)))


def encode_shard(
    store: LatentStore, shard: Shard, encoder: CellEncoder, pixels: Pixels
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The new cells of a shard, by the array they are for, and whether each is finite."""
    picked = np.searchsorted(pixels.places, shard.rows)
    plan = store.plan(shard.view, shard.block)[_inside(store, shard).tolist()]
    return encoder(pixels.images[picked], pixels.masks[picked], plan)


def write_shard(store: LatentStore, shard: Shard, cells: dict[str, np.ndarray]) -> None:
    """Put cells into a shard under the keys they are wanted by."""
    inside = _inside(store, shard)
    keys = store.wanted_keys(shard.view, shard.block)[inside]
    store.shards.write(shard.view, shard.block, inside, keys, cells)


def _inside(store: LatentStore, shard: Shard) -> np.ndarray:
    """Places of a shard's cells to encode, inside the shard."""
    inside: np.ndarray = shard.rows - store.rows_of(shard.block).start
    return inside


@contextmanager
def room(url: str) -> Iterator[None]:
    """Say so when the disk is full; what was finished before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ArtefactError(
            f"there is no room left for {url}: {error.strerror}",
            "make room and run the same command again; the finished shards are kept",
        ) from error
