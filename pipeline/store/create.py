"""A new latent store: every array with its chunks, codecs, names and units, and no data yet."""

import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import fsspec
import numpy as np
import polars as pl
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.errors import UsageError
from pipeline.store.chunks import packed_bits
from pipeline.store.keys import CHECKSUM_BYTES, KEY_BYTES
from pipeline.store.latent_store import (
    CELL_ARRAYS,
    DATA_ARRAYS,
    FORMAT_VERSION,
    LatentStore,
    open_store,
)

# One chunk a shard: 64 cells are 0.4 MB of latents, large enough to stream, small enough to lose.
SHARD_SAMPLES = 64
_FEWEST = 32  # a store begun with few samples may grow
_SOFTWARE = ("gms-lmm", "torch", "diffusers", "kornia", "zarr", "pillow")
_OWN_NAMES = {"zarr.json", "samples.parquet", *DATA_ARRAYS, *CELL_ARRAYS}
_LATENT_CODECS = (Crc32cCodec(),)  # read faster than any compressor's, see README.md
_MASK_CODECS = (ZstdCodec(level=9), Crc32cCodec())


def create_store(
    url: str,
    attributes: Mapping[str, Any],
    samples: pl.DataFrame,
    latent_shape: tuple[int, int, int],
) -> LatentStore:
    """Lay out an empty store: every array, its dimension names and units, and no data.

    raises  UsageError when something else is at the URL
    """
    fs, root = fsspec.core.url_to_fs(url)
    if fs.exists(root) and not _may_be_overwritten(fs, root):
        raise UsageError(
            f"{url} exists and is not a latent store", "choose a path that does not exist yet"
        )
    group = zarr.create_group(url, overwrite=True)
    views, count, size = attributes["views"], len(samples), attributes["preprocessing"]["size"]
    latent_names = ["image_mean", "mask_mean"]
    if not attributes["tokenizer"]["deterministic"]:
        latent_names.append("image_std")

    def create(name: str, cell: tuple[int, ...], dtype: str, dims: list[str], **more: Any) -> None:
        group.create_array(
            name,
            shape=(views, count, *cell),
            chunks=(1, _shard_samples(count), *cell),
            dtype=dtype,
            dimension_names=["view", "sample", *dims],
            **more,
        )

    for name in latent_names:
        create(
            name,
            latent_shape,
            "float16",
            ["channel", "y", "x"],
            compressors=_LATENT_CODECS,
            fill_value=np.float16("nan"),  # a foreign reader of an absent cell gets no plausible 0
            attributes={"units": "raw tokenizer units, scaling factor not applied"},
        )
    with packed_bits() as codec:
        create(
            "mask",
            (size, size),
            "bool",
            ["row", "column"],
            filters=(codec(),),
            compressors=_MASK_CODECS,
            fill_value=False,
        )
    digests: dict[str, Any] = {"dtype": "uint8", "compressors": (Crc32cCodec(),), "fill_value": 0}
    create("checksum", (len(latent_names) + 1, CHECKSUM_BYTES), dims=["array", "byte"], **digests)
    create("key", (KEY_BYTES,), dims=["byte"], **digests)

    content = io.BytesIO()
    samples.write_parquet(content)
    fs.pipe_file(f"{root}/samples.parquet", content.getvalue())
    # Last, and as a whole: format_version is what makes the folder a store.
    software = {name: version(name) for name in _SOFTWARE}
    group.attrs.update({"format_version": FORMAT_VERSION, **attributes, "software": software})
    return open_store(url, "r+")


def _shard_samples(count: int) -> int:
    """Samples of a shard, at most SHARD_SAMPLES: all shards nearly full, for zarr pads the last."""
    shards = max(1, -(-count // SHARD_SAMPLES))
    return max(-(-count // shards), min(_FEWEST, SHARD_SAMPLES))


def _may_be_overwritten(fs: Any, root: str) -> bool:
    """Whether a folder is empty, or holds only what a creation that was cut short has left."""
    if not fs.isdir(root):
        return False
    names = {path.rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)}
    names = {name for name in names if not name.endswith(".partial")}
    if "zarr.json" not in names:
        return not names
    attributes = json.loads(fs.cat_file(f"{root}/zarr.json")).get("attributes")
    return not attributes and names <= _OWN_NAMES
