"""Keys say what a cell was made from, checksums what is in it: both are digests kept with the cell.

A key is known before its cell is encoded, so comparing keys is resume, edits and added views in
one. A checksum is over key and content, so a cell in another's place does not pass for it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from pipeline.augment import PARAMETERS
from pipeline.store.format import CHECKSUM_BYTES, KEY_BYTES

# Raised whenever the same inputs would give other stored bytes; it enters every key.
ENCODER_VERSION = 1


def cell_keys(
    attributes: Mapping[str, Any], samples: pl.DataFrame, plan: pl.DataFrame, views: int
) -> np.ndarray:
    """Keys of all cells: a 128-bit BLAKE2b digest of everything that decides a cell's bytes.

    That is: encoder version, preprocessing, storage dtype, tokenizer digest; image and mask bytes
    (by sha256); and the view's parameters. Splits, names and paths do not enter, so that changing
    them encodes nothing again.

    returns  uint8 [view, sample, 16]
    """
    common = json.dumps(
        [
            ENCODER_VERSION,
            dict(attributes["preprocessing"]),
            attributes["tokenizer"]["digest"],
            "float16",
        ],
        sort_keys=True,
    )
    prefix = hashlib.blake2b(common.encode(), digest_size=KEY_BYTES)
    parameters = plan.select(PARAMETERS).to_numpy().astype("<f8")
    keys = np.zeros((views, len(samples), KEY_BYTES), dtype=np.uint8)
    hashes = samples.select("image_sha256", "mask_sha256").rows()
    for sample, (image_sha256, mask_sha256) in enumerate(hashes):
        of_sample = prefix.copy()
        of_sample.update(f"{image_sha256} {mask_sha256}".encode())
        for view in range(views):
            cell = of_sample.copy()
            cell.update(parameters[sample * views + view].tobytes())
            keys[view, sample] = np.frombuffer(cell.digest(), dtype=np.uint8)
    return keys


def cell_checksums(keys: np.ndarray, cells: Mapping[str, np.ndarray]) -> np.ndarray:
    """Checksums of some cells: a 64-bit BLAKE2b digest of key and content for each data array.

    keys     uint8 [n, 16], what the cells were made from
    cells    for each data array, in the store's order, its part of the n cells [n, …]
    returns  uint8 [n, arrays, 8]
    """
    checksums = np.empty((len(keys), len(cells), CHECKSUM_BYTES), dtype=np.uint8)
    for column, values in enumerate(cells.values()):
        for row, (key, cell) in enumerate(zip(keys, values, strict=True)):
            digest = hashlib.blake2b(key.data, digest_size=CHECKSUM_BYTES)
            digest.update(np.ascontiguousarray(cell).data)
            checksums[row, column] = np.frombuffer(digest.digest(), dtype=np.uint8)
    return checksums
