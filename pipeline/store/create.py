"""A store laid out for its data: a new one, or one there is for more samples, views, settings."""

import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import polars as pl
import zarr

from pipeline.errors import UsageError
from pipeline.files import PARTIAL
from pipeline.places import file_system
from pipeline.store.finish import drop_receipt
from pipeline.store.folder import Folder
from pipeline.store.format import (
    CELL_ARRAYS,
    DATA_ARRAYS,
    FORMAT_VERSION,
    GROUP_FILE,
    SAMPLES_FILE,
    array_layouts,
    packed_bits,
)
from pipeline.store.latent_store import LatentStore, open_store

# 64 cells are 0.4 MB of latents, large enough to stream, small enough to lose.
SHARD_SAMPLES = 64
_FEWEST = 32  # a store begun with few samples may grow
_SOFTWARE = ("gms-lmm", "torch", "diffusers", "kornia", "zarr", "pillow")
_OWN_NAMES = {GROUP_FILE, SAMPLES_FILE, *DATA_ARRAYS, *CELL_ARRAYS}


def create_store(
    url: str,
    attributes: Mapping[str, Any],
    samples: pl.DataFrame,
    latent_shape: tuple[int, int, int],
    codec: str = "none",
) -> LatentStore:
    """Lay out an empty store: every array, its dimension names and units, and no data.

    attributes  what it says of itself; `software` is what is at work unless it is named
    codec       of the latents; without one they are read fastest, see README.md
    raises      UsageError when something else is at the URL
    """
    fs, root = file_system(url)
    if fs.exists(root) and not _may_be_overwritten(fs, root):
        raise UsageError(
            f"{url} exists and is not a latent store", "choose a path that does not exist yet"
        )
    group = zarr.create_group(url, overwrite=True)
    size, posterior = (
        attributes["preprocessing"]["size"],
        not attributes["tokenizer"]["deterministic"],
    )
    with packed_bits():
        for layout in array_layouts(latent_shape, size, posterior=posterior, codec=codec):
            layout.create(group, attributes["views"], len(samples), _shard_samples(len(samples)))
    _write_samples(Folder(url), samples)
    # Last, and in one write (attrs.update is one for each): format_version makes it a store.
    software = {name: version(name) for name in _SOFTWARE}
    group.update_attributes({"format_version": FORMAT_VERSION, "software": software, **attributes})
    return open_store(url, "r+")


def extend_store(
    store: LatentStore, attributes: Mapping[str, Any], samples: pl.DataFrame
) -> LatentStore:
    """Bring samples, views and settings up to date; nothing is moved, and no cell is lost.

    samples  those of the store in their places, new ones last
    returns  the store opened again; it counts as unfinished until its receipt is written again
    """
    drop_receipt(store)
    for name in store.arrays:
        array = store.array(name)
        # Grown only: shrinking would delete cells that a later encode may want back.
        views = max(array.shape[0], attributes["views"])
        array.resize((views, max(array.shape[1], len(samples)), *array.shape[2:]))
    _write_samples(store.folder, samples)
    store.group.update_attributes(dict(attributes))
    return open_store(store.url, "r+")


def has_room(store: LatentStore, views: int) -> bool:
    """Whether its arrays hold all samples and so many views; not those of a half-finished sync."""
    shapes = [store.array(name).shape for name in store.arrays]
    return all(shape[0] >= views and shape[1] >= len(store.samples) for shape in shapes)


def _write_samples(folder: Folder, samples: pl.DataFrame) -> None:
    content = io.BytesIO()
    samples.write_parquet(content)
    folder.replace(SAMPLES_FILE, content.getvalue())


def _shard_samples(count: int) -> int:
    """Samples of a shard, at most SHARD_SAMPLES: all shards nearly full, for zarr pads the last."""
    shards = max(1, -(-count // SHARD_SAMPLES))
    return max(-(-count // shards), min(_FEWEST, SHARD_SAMPLES))


def _may_be_overwritten(fs: Any, root: str) -> bool:
    """Whether a folder is empty, or holds only what a creation that was cut short has left."""
    if not fs.isdir(root):
        return False
    names = {path.rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)}
    names = {name for name in names if not name.endswith(PARTIAL)}
    if GROUP_FILE not in names:
        return not names
    attributes = json.loads(fs.cat_file(f"{root}/{GROUP_FILE}")).get("attributes")
    return not attributes and names <= _OWN_NAMES
