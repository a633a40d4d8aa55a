"""Finishing a store: every live cell is read back and checked before a receipt vouches for it."""

import hashlib
import json
from functools import partial

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.store.format import RECEIPT_FILE
from pipeline.store.latent_store import LatentStore
from pipeline.store.receipt import receipt_head

_AHEAD = 8  # shards in memory, a few MB each


def write_receipt(store: LatentStore) -> None:
    """Finish a store: read every live cell back and put down what is in it, if it is not already.

    raises  ArtefactError when a chunk is missing or damaged, or a cell is none that belongs there
    """
    head = receipt_head(store.attributes, store.samples)
    receipt = store.receipt()
    if receipt and {key: receipt.get(key) for key in head} == head:
        return
    content = {**head, "arrays": array_digests(store)}
    store.folder.replace(RECEIPT_FILE, (json.dumps(content, indent=1) + "\n").encode())


def drop_receipt(store: LatentStore) -> None:
    """Remove the receipt before anything changes: from now on the store counts as unfinished."""
    store.folder.remove(RECEIPT_FILE)


def array_digests(store: LatentStore) -> dict[str, str]:
    """A sha256 for each data array over its live cells, by view and then sample id.

    The order makes it independent of where in the arrays a sample happens to lie, so that a store
    grown step by step and one encoded at once compare equal.
    """

    places = np.flatnonzero(store.live)
    # A shard of samples that have all left the manifest need not be there.
    length = store.shard_samples
    blocks = np.unique(places // length).tolist()
    order = places[np.argsort(store.samples["sample_id"].to_numpy()[places], kind="stable")]
    digests = {}
    for name in store.data_arrays:
        total = hashlib.sha256()
        for view in range(store.views):
            digests_of = partial(_cell_digests, store, name, view)
            shards = dict(zip(blocks, map_ahead(digests_of, blocks, _AHEAD), strict=True))
            total.update(b"".join(shards[place // length][place % length] for place in order))
        digests[name] = total.hexdigest()
    return digests


def _cell_digests(store: LatentStore, name: str, view: int, block: int) -> list[bytes]:
    cells = store.read_shard(name, view, block)
    live = np.flatnonzero(store.live[store.rows_of(block)])
    store.require_right(view, block, live, {name: cells[live]})
    return [hashlib.sha256(cell.data).digest() for cell in cells]
