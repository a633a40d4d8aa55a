"""Manifest in, latent store out: every cell without its wanted key is encoded and keyed."""

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from pipeline.ahead import map_ahead
from pipeline.encode.cells import CellEncoder
from pipeline.encode.work import Work, find_work, store_attributes
from pipeline.errors import ArtefactError, InputError
from pipeline.manifest import Manifest
from pipeline.samples import decode_sample
from pipeline.store import LatentStore, open_store, store_exists
from pipeline.store.create import create_store, extend_store
from pipeline.store.finish import drop_receipt, write_receipt
from pipeline.store.lock import (
    Partition,
    WriterLock,
    partition_lock,
    shared_lock,
    sweep_partitions,
    writer_lock,
)
from pipeline.store.verify import mend, verify
from pipeline.telling import Progress
from pipeline.tokenizer import Tokenizer, require_multiple


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
    partition: Partition | None = None,
    repair: bool = False,
    progress: Progress | None = None,
) -> EncodeReport:
    """Bring the store at `url` to what manifest, settings and tokenizer ask for, or resume that.

    views       K; view 0 is the clean image, the others are drawn (see `draw_views`)
    size        side of image and mask, px
    batch_size  cells at a time through the tokenizer; None finds one that fits in memory
    partition   encode only this share of the shards; the last of them finishes the store
    repair      verify the store first and encode again whatever is wrong with it
    progress    called with (cells done, cells to do)
    raises      UsageError when the store was made with another tokenizer, size or precision;
                ArtefactError when someone else writes to the store, or there is no room for it;
                InputError naming the sample when a file has changed since it was ingested, cannot
                be read, or encodes to something that is not finite
    """
    require_multiple(size, tokenizer)
    started = time.monotonic()
    attributes = store_attributes(manifest, tokenizer, views, size, seed, precision)
    settings = (url, manifest, tokenizer, attributes)
    with ExitStack() as held:
        if partition is None:
            lock = held.enter_context(writer_lock(url))
            if repair:
                damaged = open_store(url, "r+")
                faults = verify(damaged)[1]
                lock.require_held()
                mend(damaged, faults)
            store, todo = _begin(*settings)
        else:
            with shared_lock(url, partition):
                lock = held.enter_context(partition_lock(url, partition))
                store, todo = _begin(*settings)
            share = _share_of(partition, store.views, store.blocks())
            todo &= np.repeat(share, store.shard_samples, axis=1)[:, : todo.shape[1]]
        if todo.any():
            with _room(url):
                encoder = CellEncoder(tokenizer, precision, batch_size)
                _encode_cells(store, todo, manifest, encoder, lock, progress)
        if partition is not None:
            held.enter_context(shared_lock(url, partition))
        # Opened again: the receipt is of what lies on the disk now.
        store = open_store(url)
        present = store.present()
        complete = bool(present[:, store.live].all())
        if complete:
            lock.require_held()
            sweep_partitions(url)
            store.folder.remove_partial()
            write_receipt(store)
    encoded, seconds = int(todo.sum()), time.monotonic() - started
    return EncodeReport(
        encoded=encoded,
        reused=int(present.sum()) - encoded,
        present=int(present.sum()),
        seconds=seconds,
        samples_per_s=encoded / seconds,
        complete=complete,
    )


def _begin(
    url: str, manifest: Manifest, tokenizer: Tokenizer, attributes: dict[str, Any]
) -> tuple[LatentStore, np.ndarray]:
    """The store, laid out for what is asked for, and the cells to encode: bool [view, sample]."""
    work = find_work(url, manifest, attributes)
    store = _prepare(url, work, manifest, tokenizer)
    if work.todo.any():
        drop_receipt(store)
    return store, work.todo


@contextmanager
def _room(url: str) -> Iterator[None]:
    """Say so when the disk is full; what was finished before stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ArtefactError(
            f"there is no room left for {url}: {error.strerror}",
            "make room and run the same command again; the finished shards are kept",
        ) from error


def _prepare(url: str, work: Work, manifest: Manifest, tokenizer: Tokenizer) -> LatentStore:
    """A new store, or the old one with its samples, views and settings brought up to date."""
    if not store_exists(url):
        size = work.attributes["preprocessing"]["size"]
        side = size // tokenizer.downsampling
        shape = (tokenizer.latent_channels, side, side)
        return create_store(url, work.attributes, manifest.frame, shape)
    store = open_store(url, "r+")
    kept = {key: store.attributes.get(key) for key in work.attributes}
    if work.samples.equals(store.samples) and kept == work.attributes:
        return store
    if sweep_partitions(url):
        raise ArtefactError(
            f"{url} is being encoded by partitions with another manifest or other settings",
            "wait for them, then encode again",
        )
    return extend_store(store, work.attributes, work.samples)


def _share_of(partition: Partition, views: int, blocks: int) -> np.ndarray:
    """Which shards are a partition's; bool [view, block], blocks kept together."""
    shards = np.arange(blocks * views).reshape(blocks, views).T
    share: np.ndarray = shards * partition.count // (blocks * views) == partition.number - 1
    return share


def _encode_cells(
    store: LatentStore,
    todo: np.ndarray,
    manifest: Manifest,
    encoder: CellEncoder,
    lock: WriterLock,
    progress: Progress | None,
) -> None:
    """Shard by shard, each written before the next begins: a killed process loses the one in hand.

    The next block's images are decoded meanwhile.
    """
    done, total = 0, int(todo.sum())
    for shards, images, masks, places in _decoded_blocks(store, todo, manifest):
        for shard in shards:
            cells = _shard_cells(store, shard, encoder, images, masks, places)
            lock.require_held()
            inside = shard.rows - store.rows_of(shard.block).start
            keys = store.wanted_keys(shard.view, shard.block)[inside]
            store.shards.write(shard.view, shard.block, inside, keys, cells)
            done += len(shard.rows)
            if progress:
                progress(done, total)


def _decoded_blocks(
    store: LatentStore, todo: np.ndarray, manifest: Manifest
) -> Iterator[tuple[list[Shard], torch.Tensor, torch.Tensor, np.ndarray]]:
    """Shards of each block with the pixels they need, decoded one block ahead of the consumer.

    yields  shards; images (n, 3, S, S) uint8; masks (n, S, S) bool; places (n) of those n samples
            along the store's sample axis, ascending
    """

    wanted = np.flatnonzero(todo.any(axis=0))
    samples = store.samples[wanted.tolist()].iter_rows(named=True)
    # At most one block's samples are decoded and not yet asked for.
    decoded = map_ahead(
        lambda sample: decode_sample(manifest, sample, store.size), samples, store.shard_samples
    )
    for block in np.unique(wanted // store.shard_samples).tolist():
        rows = store.rows_of(block)
        here = todo[:, rows]
        shards = [
            Shard(view, block, rows.start + np.flatnonzero(here[view]))
            for view in np.flatnonzero(here.any(axis=1)).tolist()
        ]
        places = rows.start + np.flatnonzero(here.any(axis=0))
        images, masks = zip(*islice(decoded, len(places)), strict=True)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        yield shards, pixels, torch.from_numpy(np.stack(masks)), places


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
    inside = shard.rows - store.rows_of(shard.block).start
    plan = store.plan(shard.view, shard.block)[inside.tolist()]
    cells, finite = encoder(images[picked], masks[picked], plan)
    if not finite.all():
        bad = store.samples["sample_id"].gather(shard.rows[~finite]).to_list()
        raise InputError(
            f"{len(bad)} samples encode to latents that are not finite in float16, also when "
            f"encoded in fp32: {', '.join(bad[:5])} (view {shard.view})",
            "look at these images; leave them out of the data set if they are damaged",
        )
    return cells
