"""Manifest in, latent store out: every cell without its wanted key is encoded and keyed."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import polars as pl
import torch

from pipeline.augment import POLICY
from pipeline.cells import CellEncoder
from pipeline.errors import InputError, UsageError
from pipeline.images import read_image, read_union, resize_image, resize_mask
from pipeline.manifest import Manifest
from pipeline.receipt import write_receipt
from pipeline.store import SHARD_SAMPLES, LatentStore, create_store, open_store, store_exists
from pipeline.tokenizer import Tokenizer, require_multiple

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class EncodeReport:
    """What one call of `encode` did; counts are cells, one cell being one view of one sample."""

    encoded: int
    reused: int
    present: int
    seconds: float
    samples_per_s: float
    complete: bool


@dataclass(frozen=True)
class Shard:
    """One view of the samples of one block: the unit that is encoded, written and keyed whole."""

    view: int
    block: int
    rows: np.ndarray  # places, along the store's sample axis, of the cells to encode


def encode(
    manifest: Manifest,
    url: str,
    tokenizer: Tokenizer,
    *,
    views: int = 1,
    size: int = 224,
    seed: int = 0,
    precision: str = "fp32",
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> EncodeReport:
    """Bring the store at `url` to what manifest, settings and tokenizer ask for, or resume that.

    views       K; view 0 is the clean image, the others are drawn (see `draw_views`)
    size        side of image and mask, px
    batch_size  cells at a time through the tokenizer; None finds one that fits in memory
    progress    called with (cells done, cells to do)
    raises      UsageError when the store was made with another tokenizer, size or precision;
                InputError naming the sample when a file has changed since it was ingested, cannot
                be read, or encodes to something that is not finite
    """
    require_multiple(size, tokenizer)
    started = time.monotonic()
    attributes = store_attributes(manifest, tokenizer, views, size, seed, precision)
    store = _prepare(url, attributes, manifest, tokenizer)
    wanted = np.broadcast_to(store.live, (store.views, len(store.samples)))
    todo = wanted & ~store.present()
    encoded = int(todo.sum())
    if encoded:
        store.drop_receipt()
        _encode_cells(store, todo, manifest, tokenizer, precision, batch_size, progress)
    # Opened again: the receipt is of what lies on the disk now.
    write_receipt(open_store(url))
    seconds = time.monotonic() - started
    present = int(wanted.sum())
    return EncodeReport(
        encoded=encoded,
        reused=present - encoded,
        present=present,
        seconds=seconds,
        samples_per_s=encoded / seconds,
        complete=True,
    )


def store_attributes(
    manifest: Manifest, tokenizer: Tokenizer, views: int, size: int, seed: int, precision: str
) -> dict[str, Any]:
    """Everything a store says about how it was made; JSON types only."""
    return {
        "tokenizer": tokenizer.describe(),
        "preprocessing": {
            "size": size,
            "image_resize": "bilinear, antialiased",
            "mask_resize": "nearest",
            "mask_values": "labels" if manifest.labels else "binary",
            "pixel_range": [-1, 1],
            "precision": precision,
        },
        "views": views,
        "view_policy": asdict(POLICY),
        "seed": seed,
        "manifest_digest": manifest.digest,
        "root": str(manifest.root),
    }


def _prepare(
    url: str, attributes: dict[str, Any], manifest: Manifest, tokenizer: Tokenizer
) -> LatentStore:
    """A new store, or the old one with its samples, views and settings brought up to date."""
    if not store_exists(url):
        size = attributes["preprocessing"]["size"]
        side = size // tokenizer.downsampling
        shape = (tokenizer.latent_channels, side, side)
        return create_store(url, attributes, manifest.frame, shape)
    store = open_store(url, "r+")
    _refuse_other_settings(store, attributes)
    samples = merge_samples(store.samples, manifest.frame)
    kept = {key: store.attributes.get(key) for key in attributes}
    if samples.equals(store.samples) and kept == attributes:
        return store
    # From here until the receipt is written again the store counts as unfinished.
    store.drop_receipt()
    for name in (*store.latent_arrays, "mask", "key"):
        array = store.array(name)
        # Grown only: shrinking would delete cells that a later encode may want back.
        views = max(array.shape[0], attributes["views"])
        array.resize((views, max(array.shape[1], len(samples)), *array.shape[2:]))
    store.write_samples(samples)
    store.group.attrs.update(attributes)
    return open_store(url, "r+")


def _refuse_other_settings(store: LatentStore, attributes: dict[str, Any]) -> None:
    fix = "encode into another store path"
    old, new = store.tokenizer, attributes["tokenizer"]
    if old["digest"] != new["digest"]:
        raise UsageError(
            f"{store.url} was encoded with tokenizer {old['name']!r} ({old['digest'][:12]}), "
            f"asked for is {new['name']!r} ({new['digest'][:12]})",
            fix,
        )
    for key, value in attributes["preprocessing"].items():
        stored = store.attributes["preprocessing"].get(key)
        if stored != value:
            raise UsageError(
                f"{store.url} was encoded with {key} {stored}, asked for is {value}", fix
            )


def merge_samples(stored: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """The manifest's rows in array order: known samples keep their place, new ones come last.

    A sample that has left the manifest keeps its row and place with a null split, so that its
    cells are still there should it come back.
    """
    known = stored.select("sample_id").join(
        wanted, on="sample_id", how="inner", maintain_order="left"
    )
    gone = stored.join(wanted, on="sample_id", how="anti").with_columns(
        split=pl.lit(None, pl.String)
    )
    new = wanted.join(stored, on="sample_id", how="anti", maintain_order="left")
    place = {name: i for i, name in enumerate(stored["sample_id"])}
    columns = wanted.columns
    rows = pl.concat([known.select(columns), gone.select(columns)])
    order = rows["sample_id"].replace_strict(place, return_dtype=pl.Int64)
    return pl.concat([rows[order.arg_sort()], new.select(columns)])


def _encode_cells(
    store: LatentStore,
    todo: np.ndarray,
    manifest: Manifest,
    tokenizer: Tokenizer,
    precision: str,
    batch_size: int | None,
    progress: Progress | None,
) -> None:
    """Side by side: the next block's images decode, this shard encodes, the last is written."""
    encoder = CellEncoder(tokenizer, precision, batch_size)
    done, total = 0, int(todo.sum())
    written: list[Future[None]] = []
    with ThreadPoolExecutor(1, "writer") as writer:
        for shards, images, masks, places in _decoded_blocks(store, todo, manifest):
            for shard in shards:
                cells = _shard_cells(store, shard, encoder, images, masks, places)
                written.append(writer.submit(_write_shard, store, shard, cells))
                if len(written) > 2:  # two shards in flight bound the memory held
                    written.pop(0).result()
                done += len(shard.rows)
                if progress:
                    progress(done, total)
        for write in written:
            write.result()


def _decoded_blocks(
    store: LatentStore, todo: np.ndarray, manifest: Manifest
) -> Iterator[tuple[list[Shard], torch.Tensor, torch.Tensor, np.ndarray]]:
    """Shards of each block with the pixels they need, decoded one block ahead of the consumer.

    yields  shards; images (n, 3, S, S) uint8; masks (n, S, S) bool; places (n) of those n samples
            along the store's sample axis, ascending
    """

    def decode(block: int) -> tuple[list[Shard], torch.Tensor, torch.Tensor, np.ndarray]:
        here = todo[:, block * SHARD_SAMPLES : (block + 1) * SHARD_SAMPLES]
        shards = [
            Shard(view, block, block * SHARD_SAMPLES + np.flatnonzero(here[view]))
            for view in np.flatnonzero(here.any(axis=1)).tolist()
        ]
        places = block * SHARD_SAMPLES + np.flatnonzero(here.any(axis=0))
        rows = store.samples[places.tolist()].to_dicts()
        tasks = [dask.delayed(decode_sample)(manifest, row, store.size) for row in rows]
        images, masks = zip(*dask.compute(*tasks, scheduler="threads"), strict=True)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return shards, pixels, torch.from_numpy(np.stack(masks)), places

    blocks = [
        b for b in range(store.blocks()) if todo[:, b * SHARD_SAMPLES :][:, :SHARD_SAMPLES].any()
    ]
    with ThreadPoolExecutor(1, "decoder") as ahead:
        upcoming = ahead.submit(decode, blocks[0])
        for following in [*blocks[1:], None]:
            current = upcoming.result()
            if following is not None:
                upcoming = ahead.submit(decode, following)
            yield current


def decode_sample(
    manifest: Manifest, row: dict[str, Any], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One sample's pixels at the store's size: image (size, size, 3) uint8, mask (size, size) bool.

    raises  InputError when the files are not the bytes that were ingested
    """
    image_path, mask_paths = manifest.image_path(row), manifest.mask_paths(row)
    require_same_bytes([image_path], row["image_sha256"])
    require_same_bytes(mask_paths, row["mask_sha256"])
    image = resize_image(read_image(image_path), size)
    return image, resize_mask(read_union(mask_paths, labels=manifest.labels), size)


def require_same_bytes(paths: list[Path], ingested_sha256: str) -> None:
    """Raise InputError unless the files, one after the other, are the bytes that were ingested."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}", "restore the file"
            ) from error
    if digest.hexdigest() != ingested_sha256:
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"{names} changed since it was ingested", "run gms-lmm ingest again")


def _shard_cells(
    store: LatentStore,
    shard: Shard,
    encoder: CellEncoder,
    images: torch.Tensor,
    masks: torch.Tensor,
    places: np.ndarray,
) -> dict[str, np.ndarray]:
    """The new cells of a shard, one array for each array of the store."""
    picked = np.searchsorted(places, shard.rows)
    plan = store.plan[(shard.rows * store.views + shard.view).tolist()]
    cells, finite = encoder(images[picked], masks[picked], plan)
    if not finite.all():
        bad = store.samples["sample_id"].gather(shard.rows[~finite]).to_list()
        raise InputError(
            f"{len(bad)} samples encode to latents that are not finite in float16, also when "
            f"encoded in fp32: {', '.join(bad[:5])} (view {shard.view})",
            "look at these images; leave them out of the data set if they are damaged",
        )
    return cells


def _write_shard(store: LatentStore, shard: Shard, cells: dict[str, np.ndarray]) -> None:
    """Invalidate, write, commit: whenever the process dies, no key vouches for other data."""
    start = shard.block * SHARD_SAMPLES
    rows = slice(start, min(start + SHARD_SAMPLES, len(store.samples)))
    inside = shard.rows - start
    key_array = store.array("key")
    keys: np.ndarray = np.array(key_array[shard.view, rows])
    if keys[inside].any():
        keys[inside] = 0
        key_array[shard.view, rows] = keys
    others = np.delete(keys, inside, axis=0)
    for name, values in cells.items():
        if others.any():
            # Never straight from zarr, which gives the fill value for a chunk that was lost.
            data = store.read_shard(name, shard.view, shard.block)
        else:
            fill = store.array(name).fill_value
            data = np.full((len(keys), *values.shape[1:]), fill, values.dtype)
        data[inside] = values
        store.array(name)[shard.view, rows] = data
    keys[inside] = store.wanted_keys[shard.view, shard.rows]
    key_array[shard.view, rows] = keys
