"""Keys say what a cell was made from, checksums what is in it: both are digests kept with the cell.

A key is known before its cell is encoded, so comparing keys is resume, edits and added views in
one. A checksum is over key and content, so a cell in another's place does not pass for it; it is
fast enough to be compared whenever a cell is read.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import xxhash

from pipeline.augment import PARAMETERS, ViewPolicy, draw_views
from pipeline.store.format import KEY_BYTES

# Raised whenever the same inputs would give other stored bytes; it enters every key.
ENCODER_VERSION = 1


def wanted_cells(attributes: Mapping[str, Any], samples: pl.DataFrame) -> np.ndarray:
    """Which cells there are to be: bool [view, sample].

    All views of a sample that may be trained on, fewer of those that never are: the split test.
    """
    shape, split = (attributes["views"], len(samples)), samples["split"]
    wanted = np.broadcast_to(split.is_not_null().to_numpy(), shape).copy()
    wanted[attributes["eval_views"] :] &= split.ne_missing("test").to_numpy()
    return wanted


def plan_of(
    attributes: Mapping[str, Any], samples: pl.DataFrame, views: Sequence[int]
) -> pl.DataFrame:
    """The plan of some samples in some views of a store with these attributes; see `draw_views`."""
    # A store of before contrast was drawn does not say that it has none.
    policy = ViewPolicy(**{"contrast": 0.0, **attributes["view_policy"]})
    return draw_views(samples["sample_id"].to_list(), views, attributes["seed"], policy)


def wanted_keys(
    attributes: Mapping[str, Any], samples: pl.DataFrame, views: Sequence[int]
) -> np.ndarray:
    """Keys that some samples' cells have in some views once they hold what is asked for.

    returns  uint8 [view, sample, 16]
    """
    return cell_keys(attributes, samples, plan_of(attributes, samples, views), len(views))


def cell_keys(
    attributes: Mapping[str, Any], samples: pl.DataFrame, plan: pl.DataFrame, views: int
) -> np.ndarray:
    """Keys of a plan's cells: a 128-bit BLAKE2b digest of everything that decides a cell's bytes.

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
    parameters = plan.select(PARAMETERS).to_numpy().astype("<f8", order="C").tobytes()
    length, digests = 8 * len(PARAMETERS), []
    # Contrast, the last, enters where there is any: keys of other views are as before it was drawn.
    lengths = np.where(plan["contrast"] == 1, length - 8, length).tolist()
    hashes = samples.select("image_sha256", "mask_sha256").rows()
    for sample, (image_sha256, mask_sha256) in enumerate(hashes):
        of_sample = prefix.copy()
        of_sample.update(f"{image_sha256} {mask_sha256}".encode())
        first = sample * views * length
        for view in range(views):
            cell, start = of_sample.copy(), first + view * length
            cell.update(parameters[start : start + lengths[sample * views + view]])
            digests.append(cell.digest())
    by_sample = np.frombuffer(b"".join(digests), np.uint8).reshape(len(samples), views, KEY_BYTES)
    return np.ascontiguousarray(by_sample.swapaxes(0, 1))


def cell_checksums(keys: np.ndarray, cells: Mapping[str, np.ndarray]) -> np.ndarray:
    """Checksums of some cells: XXH3-64 of the content, seeded by the key, for each data array.

    The seed is the key's first eight bytes as a little-endian number; the checksum is kept in
    little-endian order, too.

    keys     uint8 [n, 16], what the cells were made from
    cells    for some data arrays, in the store's order, their part of the n cells [n, …]; masks
             as bool or as the bits that they are packed to, of which the checksum is
    returns  uint8 [n, arrays, 8]
    """
    seeds = np.ascontiguousarray(keys[:, :8]).view("<u8")[:, 0].tolist()
    by_array = [
        [xxhash.xxh3_64_intdigest(cell, seed) for cell, seed in zip(of, seeds, strict=True)]
        for of in map(_bytes_of, cells.values())
    ]
    digests = np.ascontiguousarray(np.array(by_array, "<u8").T)
    return digests[..., None].view(np.uint8)


def _bytes_of(cells: np.ndarray) -> np.ndarray:
    """Cells as their checksums see them, in one piece."""
    return np.ascontiguousarray(np.packbits(cells, axis=-1) if cells.dtype == np.bool_ else cells)
