"""What a store holds, finished or not: counts, shapes and bytes; no data is read but the keys."""

from typing import Any

from pipeline.store import LatentStore


def describe_store(store: LatentStore) -> dict[str, Any]:
    """Everything worth knowing of a store before its data is read; JSON types only.

    views           K, of which view 0 is the clean image
    samples         samples of the manifest; `departed` counts those that have left it since
    present         cells, one cell being one view of one sample, that hold what they should;
                    `cells` is how many there are to be
    complete        whether every cell is present and the store has its receipt
    latent_shape    [C, h, w] of one latent; `size_px` is the side of image and mask
    bytes           of all files of the store; `bytes_per_view` is the chunks of one view, the
                    average of the views that have any
    arrays          shape, dtype, chunk and bytes of each array
    """
    live = store.samples.drop_nulls("split")
    present, cells = int(store.present().sum()), store.views * len(live)
    sizes = _file_sizes(store)
    of_views = _bytes_of_views(sizes, store.views)
    preprocessing = store.attributes["preprocessing"]
    return {
        "store": store.url,
        "views": store.views,
        "samples": len(live),
        "departed": len(store.samples) - len(live),
        "by_split": dict(sorted(live["split"].value_counts().rows())),
        "present": present,
        "cells": cells,
        "complete": present == cells and store.receipt() is not None,
        "latent_shape": list(store.latent_shape),
        "size_px": store.size,
        "precision": preprocessing["precision"],
        "seed": store.attributes["seed"],
        "tokenizer": store.tokenizer,
        "bytes": sum(sizes.values()),
        "bytes_per_view": round(sum(of_views) / max(1, len(of_views))),
        "arrays": {
            name: _describe_array(store, name, sizes)
            for name in (*store.latent_arrays, "mask", "key")
        },
        "software": store.attributes["software"],
    }


def _file_sizes(store: LatentStore) -> dict[str, int]:
    """Bytes of each file, by its path inside the store."""
    found: dict[str, dict[str, Any]] = store.fs.find(store.root, detail=True)
    return {path[len(store.root) + 1 :]: int(info["size"]) for path, info in found.items()}


def _bytes_of_views(sizes: dict[str, int], views: int) -> list[int]:
    """Bytes of the chunks ARRAY/c/VIEW/… of each view that has any."""
    totals = [0] * views
    for path, size in sizes.items():
        parts = path.split("/")
        # A store that was encoded with more views before still holds their chunks.
        if len(parts) > 3 and parts[1] == "c" and int(parts[2]) < views:
            totals[int(parts[2])] += size
    return [total for total in totals if total]


def _describe_array(store: LatentStore, name: str, sizes: dict[str, int]) -> dict[str, Any]:
    array = store.array(name)
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "chunk": list(array.chunks),
        "bytes": sum(size for path, size in sizes.items() if path.startswith(f"{name}/")),
    }
