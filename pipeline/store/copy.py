"""Cells carried into another store as they are: elsewhere, compressed, or fewer of them."""

import numpy as np

from pipeline.errors import UsageError
from pipeline.store.create import create_store
from pipeline.store.finish import write_receipt
from pipeline.store.folder import store_exists
from pipeline.store.format import latent_codec
from pipeline.store.latent_store import LatentStore, open_store
from pipeline.store.lock import writer_lock
from pipeline.store.receipt import receipt_head
from pipeline.telling import Progress


def copy_store(
    store: LatentStore, url: str, codec: str, progress: Progress | None = None
) -> LatentStore:
    """The live cells of a finished store as one at another URL, or resume that; equal receipts.

    codec     of the latents there, one of LATENT_CODECS; readers need not be told
    progress  called with (shards written, shards to write)
    returns   the copy, read back and finished
    raises    ArtefactError when the store is not finished, damaged, or changes meanwhile;
              UsageError when something else is at the URL
    """
    store.require_complete()
    with writer_lock(url, "copy"), store.unchanged():
        rows = np.flatnonzero(store.live)
        if store_exists(url):
            _require_begun_by_this(store, rows, open_store(url), codec)
        return copy_rows(store, rows, url, codec=codec, progress=progress)


def _require_begun_by_this(
    store: LatentStore, rows: np.ndarray, copy: LatentStore, codec: str
) -> None:
    head = receipt_head(store.attributes, store.samples[rows.tolist()])
    same = receipt_head(copy.attributes, copy.samples) == head
    if not same or latent_codec(copy.array("image_mean")) != codec:
        raise UsageError(
            f"{copy.url} exists and is no copy of {store.url} with codec {codec}",
            "copy to a path that does not exist yet",
        )


def copy_rows(
    store: LatentStore,
    rows: np.ndarray,
    url: str,
    *,
    codec: str | None = None,
    progress: Progress | None = None,
) -> LatentStore:
    """The cells of some rows, closed up, as a store of its own; its receipt if it is complete.

    A store that is there already is one in which such a copy was cut short: what it holds stays.

    codec    of the latents; None for that of the store
    returns  the copy, opened again
    """
    if not store_exists(url):
        # With the versions that encoded the cells, not those that move them.
        codec = codec or latent_codec(store.array("image_mean"))
        samples = store.samples[rows.tolist()]
        create_store(url, store.attributes, samples, store.latent_shape, codec)
    copy = open_store(url, "r+")
    stored, there = store.stored_keys(), copy.stored_keys()
    total = copy.blocks() * store.views
    for step, (block, view) in enumerate(np.ndindex(copy.blocks(), store.views)):
        target = copy.rows_of(block)
        wanted = rows[target]
        keys = stored[view, wanted]
        if keys.any() and (keys != there[view, target]).any():
            for name in store.arrays:  # keys last: whatever dies here vouches for nothing
                copy.array(name)[view, target] = _gather(store, name, view, wanted)
        if progress:
            progress(step + 1, total)
    copy = open_store(url)
    if np.array_equal(copy.present(), copy.wanted):
        write_receipt(copy)
    return open_store(url)


def _gather(store: LatentStore, name: str, view: int, rows: np.ndarray) -> np.ndarray:
    """Cells of one array by row; those of shards that were never written are absent in the copy."""
    array = store.array(name)
    cells = np.full((len(rows), *array.shape[2:]), array.fill_value, array.dtype)
    for block in np.unique(rows // store.shard_samples).tolist():
        here = rows // store.shard_samples == block
        if store.chunk_path("key", view, block) in store.files:
            inside = rows[here] - store.rows_of(block).start
            cells[here] = store.read_shard(name, view, block)[inside]
    return cells
