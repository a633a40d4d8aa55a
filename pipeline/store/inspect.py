"""What a store holds, finished or not: counts, shapes, bytes and how the latents are spread."""

import math
from functools import partial
from typing import Any

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.store.latent_store import LatentStore

_AHEAD = 8  # shards in memory, some MB each as float64


def describe_store(store: LatentStore) -> dict[str, Any]:
    """Everything worth knowing of a store; JSON types only.

    views           K, of which view 0 is the clean image; `eval_views` of the split test
    samples         samples of the manifest; `departed` counts those that have left it since
    present         cells, one cell being one view of one sample, that hold what they should;
                    `cells` is how many there are to be
    complete        whether every cell is present and the store has its receipt
    latent_shape    [C, h, w] of one latent; `size_px` is the side of image and mask
    bytes           of all files of the store; `bytes_per_view` is the chunks of one view, the
                    average of the views that have any
    arrays          shape, dtype, chunk and bytes of each array, and `compression`: bytes of the
                    chunks that are stored, decoded, over those on disk
    latents         mean and std of each channel of image_mean and mask_mean over the clean images
                    present, as the LMM reads them: scaled
    raises          ArtefactError when a chunk is missing or damaged
    """
    live = store.samples.drop_nulls("split")
    present, cells = int(store.present().sum()), int(store.wanted.sum())
    sizes = store.files
    of_views = _bytes_of_views(sizes, store.views)
    preprocessing = store.attributes["preprocessing"]
    return {
        "store": store.url,
        "views": store.views,
        "eval_views": store.eval_views,
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
        "arrays": {name: _describe_array(store, name, sizes) for name in store.arrays},
        "latents": latent_statistics(store),
        "software": store.attributes["software"],
    }


def latent_statistics(store: LatentStore) -> dict[str, dict[str, list[float]]]:
    """{array: {"mean": [C], "std": [C]}} over the clean images present; empty when there are none.

    raises  ArtefactError when a chunk is missing or damaged
    """
    present = store.present()[0]
    blocks = np.unique(np.flatnonzero(present) // store.shard_samples).tolist()
    scale, shift = store.tokenizer["scaling_factor"], store.tokenizer["shift_factor"]

    def sums(name: str, block: int) -> np.ndarray:
        """Number, sum and sum of squares of each channel; float64 [3, C]."""
        cells = store.read_shard(name, 0, block)[present[store.rows_of(block)]]
        z = (cells.astype(np.float64) - shift) * scale
        number = np.full(z.shape[1], z.size / z.shape[1])
        return np.stack([number, z.sum((0, 2, 3)), np.square(z).sum((0, 2, 3))])

    statistics = {}
    for name in ("image_mean", "mask_mean") if blocks else ():
        shards = map_ahead(partial(sums, name), blocks, _AHEAD)
        number, total, squares = np.sum(list(shards), axis=0)
        mean = total / number
        std = np.sqrt(squares / number - np.square(mean))
        statistics[name] = {"mean": mean.round(4).tolist(), "std": std.round(4).tolist()}
    return statistics


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
    chunks = [size for path, size in sizes.items() if path.startswith(f"{name}/c/")]
    decoded = len(chunks) * math.prod(array.chunks) * array.dtype.itemsize
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "chunk": list(array.chunks),
        "bytes": sum(size for path, size in sizes.items() if path.startswith(f"{name}/")),
        "compression": round(decoded / sum(chunks), 2) if chunks else None,
    }
