"""How fast a split is read into memory, against numpy's own files of the same cells."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lmm.bench.turns import in_turns
from lmm.latents import SplitReader, load_latents
from pipeline.store import LatentStore

_ROUNDS = 7
_SPLIT = "train"


def bench_read(store: LatentStore) -> dict[str, Any]:
    """`load_latents` of the train split, all views and masks, every check on, in turns with numpy.

    npy    numpy.load of the same arrays from one file; masks are bool there, as in the store
    files  numpy.load of one file for each array of each cell, as caches of features are kept

    All are read from the page cache, so that the disk is no part of the comparison.

    returns  samples_per_s, npy_samples_per_s and files_samples_per_s in cells per second; ratio
             and files_ratio, the first over the others; bytes_per_cell, of what the store keeps of
             image mean, mask mean and mask
    """
    arrays = _arrays(store)
    cells = arrays["mask"].shape[0]
    with TemporaryDirectory() as folder:
        one, files = Path(folder) / "one.npy", Path(folder) / "files"
        with one.open("wb") as file:
            for array in arrays.values():
                np.save(file, array)
        for name, array in arrays.items():
            (files / name).mkdir(parents=True)
            for number, cell in enumerate(array):
                np.save(files / name / f"{number}.npy", cell)

        def read_one() -> None:
            with one.open("rb") as file:
                for _ in arrays:
                    np.load(file)

        def read_files() -> None:
            for name, array in arrays.items():
                into = np.empty_like(array)
                for number in range(cells):
                    into[number] = np.load(files / name / f"{number}.npy")

        ways: dict[str, Callable[[], Any]] = {
            "store": lambda: load_latents(store, _SPLIT),
            "npy": read_one,
            "files": read_files,
        }
        for way in ways.values():
            way()  # into the page cache
        rate = {name: cells / seconds for name, seconds in in_turns(ways, _ROUNDS).items()}
    return {
        "samples_per_s": rate["store"],
        "npy_samples_per_s": rate["npy"],
        "ratio": rate["store"] / rate["npy"],
        "files_samples_per_s": rate["files"],
        "files_ratio": rate["store"] / rate["files"],
        "cells": cells,
        "bytes_per_cell": _bytes_per_cell(store),
    }


def _arrays(store: LatentStore) -> dict[str, np.ndarray]:
    """The split's cells as the store has them, one after the other: float16 latents, bool masks."""
    latents = load_latents(store, _SPLIT)
    assert latents.mask_bits is not None
    tensors = {
        "image_mean": latents.image_mean,
        "mask_mean": latents.mask_mean,
        "mask": latents.unpack(latents.mask_bits),
    }
    return {name: t.flatten(0, 1).numpy() for name, t in tensors.items() if t is not None}


def _bytes_per_cell(store: LatentStore) -> float:
    reader = SplitReader(store, _SPLIT, masks=True)
    chunks = [
        store.chunk_path(name, view, block)
        for name in ("image_mean", "mask_mean", "mask")
        for view in range(store.views)
        for block in reader.blocks
    ]
    held = store.views * sum(
        store.rows_of(block).stop - store.rows_of(block).start for block in reader.blocks
    )
    kept = float(sum(store.files[chunk] for chunk in chunks))
    return float(kept / held)
