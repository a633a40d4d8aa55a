"""The receipt that finishes a store: what it holds, and a digest of every array."""

import hashlib
import json
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from pipeline.ahead import map_ahead
from pipeline.store.format import RECEIPT_FILE
from pipeline.store.latent_store import LatentStore

_AHEAD = 8  # shards in memory, a few MB each


def write_receipt(store: LatentStore) -> None:
    """Finish a store: read every live cell back and put down what is in it, if it is not already.

    raises  ArtefactError when a chunk is missing or damaged
    """
    head = receipt_head(store)
    receipt = store.receipt()
    if receipt and {key: receipt.get(key) for key in head} == head:
        return
    content = {**head, "arrays": array_digests(store)}
    store.folder.replace(RECEIPT_FILE, (json.dumps(content, indent=1) + "\n").encode())


def drop_receipt(store: LatentStore) -> None:
    """Remove the receipt before anything changes: from now on the store counts as unfinished."""
    store.folder.remove(RECEIPT_FILE)


def receipt_head(store: LatentStore) -> dict[str, Any]:
    """What a receipt says of a store without reading its data; JSON types only.

    There are no times, host names or paths in it, so that equal stores have equal receipts.
    """
    config = {
        key: value
        for key, value in store.attributes.items()
        if key not in ("software", "manifest_digest", "root")
    }
    config["tokenizer"] = {k: v for k, v in config["tokenizer"].items() if k != "name"}
    live = store.samples.filter(pl.col("split").is_not_null()).sort("sample_id")
    return {
        "format_version": store.attributes["format_version"],
        "config_digest": _json_digest(config),
        "manifest_digest": store.attributes["manifest_digest"],
        # Without twins and folds, which a store of before them does not have.
        "samples_digest": _json_digest(live.drop("twin_group", "fold", strict=False).rows()),
        "views": store.views,
        "samples": len(live),
        "by_split": dict(sorted(live["split"].value_counts().rows())),
    }


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    return [hashlib.sha256(cell.data).digest() for cell in store.read_shard(name, view, block)]
