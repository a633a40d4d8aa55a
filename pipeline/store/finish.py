"""Finishing a store: every live cell is read back and checked before a receipt vouches for it."""

import hashlib
import json
from functools import partial

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.store.format import RECEIPT_FILE
from pipeline.store.latent_store import LatentStore
from pipeline.store.lock import WriterLock, sweep_locks
from pipeline.store.receipt import is_of, receipt_head

_AHEAD = 8  # shards in memory, some MB each
_SHA256_BYTES = 32


def finish(store: LatentStore, lock: WriterLock) -> None:
    """Leave nothing beside a store that is whole, and write its receipt; raises as that does."""
    lock.require_held()
    sweep_locks(store.url)
    store.folder.remove_partial()
    write_receipt(store)


def write_receipt(store: LatentStore) -> None:
    """Finish a store: read every live cell back and put down what is in it, if it is not already.

    raises  ArtefactError when a chunk is missing or damaged, or a cell is none that belongs there
    """
    if is_of(store.receipt(), store.attributes, store.samples):
        return
    head = receipt_head(store.attributes, store.samples)
    content = {**head, "arrays": array_digests(store)}
    store.folder.replace(RECEIPT_FILE, (json.dumps(content, indent=1) + "\n").encode())


def drop_receipt(store: LatentStore) -> None:
    """Remove the receipt before anything changes: from now on the store counts as unfinished."""
    store.folder.remove(RECEIPT_FILE)


def array_digests(store: LatentStore) -> dict[str, str]:
    """A sha256 for each data array over the cells there are to be, by view and then sample id.

    The order makes it independent of where in the arrays a sample happens to lie, so that a store
    grown step by step and one encoded at once compare equal.
    """
    order = np.argsort(store.samples["sample_id"].to_numpy(), kind="stable")
    totals = {name: hashlib.sha256() for name in store.data_arrays}
    of_view = np.zeros((len(totals), len(store.samples), _SHA256_BYTES), np.uint8)
    for view, wanted in enumerate(store.wanted):
        # A shard of samples that are not wanted need not be there.
        blocks = np.unique(np.flatnonzero(wanted) // store.shard_samples).tolist()
        shards = map_ahead(partial(_shard_digests, store, view), blocks, _AHEAD)
        for block, digests in zip(blocks, shards, strict=True):
            rows = store.rows_of(block)
            of_view[:, rows][:, wanted[rows]] = digests
        for total, digests in zip(totals.values(), of_view, strict=True):
            total.update(digests[order[wanted[order]]].data)
    return {name: total.hexdigest() for name, total in totals.items()}


def _shard_digests(store: LatentStore, view: int, block: int) -> np.ndarray:
    """sha256 of each cell of a shard there is to be, by data array: uint8 [array, n, 32]."""
    inside = np.flatnonzero(store.wanted[view, store.rows_of(block)])
    cells = {name: store.read_shard(name, view, block)[inside] for name in store.data_arrays}
    store.require_right(view, block, inside, cells)
    digests = b"".join(hashlib.sha256(cell.data).digest() for of in cells.values() for cell in of)
    return np.frombuffer(digests, np.uint8).reshape(len(cells), len(inside), _SHA256_BYTES)
