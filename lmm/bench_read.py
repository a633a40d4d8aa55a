"""How fast a split is read from a store, against NumPy reading the same bytes from .npy files."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lmm.bench import seconds
from lmm.latents import Latents, load_latents
from pipeline.store import LatentStore

_ROUNDS = 7


def bench_read(store: LatentStore) -> dict[str, Any]:
    """`load_latents` of the train split against np.load of the same bytes, in turns.

    store  as training reads it: all views, latents and masks; every cell's key is held against the
           one that is wanted (those are computed once for an opened store), every chunk against its
           CRC-32C, every latent is finite. Cells' checksums are for `verify` alone
    npy    one np.load of one file that holds all of it, unchecked
    files  one np.load for each latent and mask of each cell, as caches of one file a sample and
           view read them, into the same arrays, unchecked

    All is read warm, from the page cache: the first round is not counted, of the others the median.

    returns  samples_per_s, npy_samples_per_s and files_samples_per_s in cells per second; ratio
             (store ÷ npy); files_ratio (store ÷ files); cells; bytes_per_cell, what the chunks of
             latents and masks take on disk, over all cells of the store
    """
    tensors = _tensors(load_latents(store, "train"))
    cells = len(tensors[0])
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "split.npy")
        np.save(whole, np.concatenate([x.reshape(cells, -1).view(np.uint8) for x in tensors], 1))
        files = [[Path(folder, f"{i}-{n}.npy") for n in range(cells)] for i in range(len(tensors))]
        for tensor, of_cells in zip(tensors, files, strict=True):
            for file, cell in zip(of_cells, tensor, strict=True):
                np.save(file, cell)

        def one_by_one() -> None:
            for tensor, of_cells in zip(tensors, files, strict=True):
                read = np.empty_like(tensor)
                for place, file in enumerate(of_cells):
                    read[place] = np.load(file)

        ways = [lambda: load_latents(store, "train"), lambda: np.load(whole), one_by_one]
        times = np.array([[seconds(way) for way in ways] for _ in range(_ROUNDS + 1)])[1:]
    rates = (cells / np.median(times, axis=0)).tolist()
    return {
        "samples_per_s": rates[0],
        "npy_samples_per_s": rates[1],
        "ratio": rates[0] / rates[1],
        "files_samples_per_s": rates[2],
        "files_ratio": rates[0] / rates[2],
        "cells": cells,
        "bytes_per_cell": bytes_per_cell(store),
    }


def _tensors(latents: Latents) -> list[np.ndarray]:
    """All that is held of a split: each latent and the masks' bits, [cells, …]."""
    parts = (latents.image_mean, latents.image_std, latents.mask_mean, latents.mask_bits)
    return [part.flatten(0, 1).numpy() for part in parts if part is not None]


def bytes_per_cell(store: LatentStore) -> float:
    """What latents and masks take on disk, last shard and all, divided by the cells there are."""
    chunks = tuple(f"{name}/c/" for name in store.data_arrays)
    total = sum(size for file, size in store.files.items() if file.startswith(chunks))
    return total / (store.views * len(store.samples))
