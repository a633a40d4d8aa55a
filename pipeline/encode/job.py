"""Manifest in, latent store out: every cell without its wanted key is encoded and keyed."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from types import ModuleType

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.encode.blocks import (
    Pixels,
    Shard,
    encode_shard,
    room,
    shards_of,
    stack_pixels,
    write_shard,
)
from pipeline.encode.cells import CellEncoder
from pipeline.encode.work import EVAL_VIEWS, Work, find_work, store_attributes
from pipeline.errors import ArtefactError, InputError, UsageError
from pipeline.manifest import Manifest
from pipeline.samples import decode_sample
from pipeline.store import LatentStore, open_store, store_exists
from pipeline.store.create import create_store, extend_store, has_room
from pipeline.store.finish import drop_receipt, finish
from pipeline.store.lock import (
    Partition,
    WriterLock,
    partition_lock,
    shared_lock,
    sweep_partitions,
    writer_lock,
)
from pipeline.store.verify import mend, verify
from pipeline.telling import Progress, ticking
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


def encode(
    manifest: Manifest,
    url: str,
    tokenizer: Tokenizer,
    *,
    views: int = 1,
    size: int = 224,
    seed: int = 0,
    precision: str = "fp32",
    eval_views: int = EVAL_VIEWS,
    batch_size: int | None = None,
    partition: Partition | None = None,
    scheduler: str | None = None,
    worker_device: str = "auto",
    repair: bool = False,
    announce: Callable[[Work], None] | None = None,
    progress: Progress | None = None,
) -> EncodeReport:
    """Bring the store at `url` to what manifest, settings and tokenizer ask for, or resume that.

    views          K; view 0 is the clean image, the others are drawn (see `draw_views`)
    size           side of image and mask, px
    eval_views     how many of the views samples of split test have, which are never trained on
    batch_size     cells at a time through the tokenizer; None finds one that fits in memory
    partition      encode only this share of the blocks; the last of them finishes the store
    scheduler      encode on the workers of a Dask cluster (see `pipeline.encode.cluster`), each of
                   which loads the tokenizer by its name onto `worker_device`
    repair         verify the store first and encode again whatever is wrong with it
    announce       called with what is to be done, before it begins
    progress       called with (cells done, cells to do)
    raises         UsageError when the store was made with another tokenizer, size or precision;
                   ArtefactError when someone else writes to the store, there is no room for it, or
                   a cluster cannot encode it; InputError naming the sample when a file has changed
                   since it was ingested, cannot be read, or encodes to something that is not finite
    """
    require_multiple(size, tokenizer)
    started = time.monotonic()
    attributes = store_attributes(manifest, tokenizer, views, size, seed, precision, eval_views)
    with ExitStack() as held:
        client = None
        if partition is None:
            lock = held.enter_context(writer_lock(url))
            if repair:
                _repair(url, lock)
            work = find_work(url, manifest, attributes)
            if scheduler and work.todo.any():  # before anything is touched
                client = held.enter_context(_dask().connected(scheduler))
            store, todo = _begin(url, work, manifest, tokenizer), work.todo
        else:
            with shared_lock(url, partition):
                work = find_work(url, manifest, attributes)
                # Refused where it disturbs another partition.
                store = _begin(url, work, manifest, tokenizer)
                lock = held.enter_context(partition_lock(url, partition))
            share = np.repeat(_share_of(partition, store.blocks()), store.shard_samples)
            todo = work.todo & share[: work.todo.shape[1]]
        if announce:
            announce(work)
        if client is not None:
            options = (tokenizer.name, worker_device, batch_size)
            _dask().encode_cells(client, store, todo, *options, lock, progress)
        elif todo.any():
            with room(url):
                encoder = CellEncoder(tokenizer, precision, batch_size)
                _encode_cells(store, todo, manifest, encoder, lock, progress)
        if partition is not None:
            held.enter_context(shared_lock(url, partition))
        # Opened again: the receipt is of what lies on the disk now.
        store = open_store(url)
        present = store.present()
        complete = np.array_equal(present, store.wanted)
        if complete:
            finish(store, lock)
    encoded, seconds = int(todo.sum()), time.monotonic() - started
    return EncodeReport(
        encoded=encoded,
        reused=int(present.sum()) - encoded,
        present=int(present.sum()),
        seconds=seconds,
        samples_per_s=encoded / seconds,
        complete=complete,
    )


def _repair(url: str, lock: WriterLock) -> None:
    """Take out of a store whatever is wrong with it, to be encoded again."""
    damaged = open_store(url, "r+")
    if not has_room(damaged, damaged.views):
        damaged = extend_store(damaged, damaged.attributes, damaged.samples)
    faults = verify(damaged)[1]
    lock.require_held()
    mend(damaged, faults)


def _begin(url: str, work: Work, manifest: Manifest, tokenizer: Tokenizer) -> LatentStore:
    """The store, laid out for what is asked for, and without receipt where there is work."""
    store = _prepare(url, work, manifest, tokenizer)
    if work.todo.any():
        drop_receipt(store)
    return store


def _dask() -> ModuleType:
    """What encodes on a cluster; Dask is imported by those alone who ask for it."""
    try:
        return import_module("pipeline.encode.cluster")
    except ImportError as error:
        message = f"--scheduler needs Dask: {error}"
        raise UsageError(message, "pip install 'gms-lmm[cluster]'") from error


def _prepare(url: str, work: Work, manifest: Manifest, tokenizer: Tokenizer) -> LatentStore:
    """A new store, or the old one with its samples, views and settings brought up to date."""
    if not store_exists(url):
        size = work.attributes["preprocessing"]["size"]
        side = size // tokenizer.downsampling
        shape = (tokenizer.latent_channels, side, side)
        return create_store(url, work.attributes, manifest.frame, shape)
    store = open_store(url, "r+")
    kept = {key: store.attributes.get(key) for key in work.attributes}
    if (
        work.samples.equals(store.samples)
        and kept == work.attributes
        and has_room(store, store.views)
    ):
        return store
    if sweep_partitions(url):
        raise ArtefactError(
            f"{url} is being encoded by partitions with another manifest or other settings",
            "wait for them, then encode again",
        )
    return extend_store(store, work.attributes, work.samples)


def _share_of(partition: Partition, blocks: int) -> np.ndarray:
    """Which blocks are a partition's: every n-th, so that those added later fall to all; bool."""
    share: np.ndarray = np.arange(blocks) % partition.count == partition.number - 1
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
    tick = ticking(progress, int(todo.sum()))
    for shards, pixels in _decoded_blocks(store, todo, manifest):
        for shard in shards:
            cells, finite = encode_shard(store, shard, encoder, pixels)
            _require_finite(store, shard, finite)
            lock.require_held()
            write_shard(store, shard, cells)
            tick(len(shard.rows))


def _decoded_blocks(
    store: LatentStore, todo: np.ndarray, manifest: Manifest
) -> Iterator[tuple[list[Shard], Pixels]]:
    """Shards of each block with the pixels they need, decoded one block ahead of the consumer."""
    wanted = np.flatnonzero(todo.any(axis=0))
    samples = store.samples[wanted.tolist()].iter_rows(named=True)
    # At most one block's samples are decoded and not yet asked for.
    decoded = map_ahead(
        lambda sample: decode_sample(manifest, sample, store.size), samples, store.shard_samples
    )
    for block in np.unique(wanted // store.shard_samples).tolist():
        rows = store.rows_of(block)
        places = rows.start + np.flatnonzero(todo[:, rows].any(axis=0))
        pixels = stack_pixels(places, islice(decoded, len(places)))
        yield shards_of(store, block, todo[:, rows]), pixels


def _require_finite(store: LatentStore, shard: Shard, finite: np.ndarray) -> None:
    if finite.all():
        return
    bad = store.samples["sample_id"].gather(shard.rows[~finite]).to_list()
    raise InputError(
        f"{len(bad)} samples encode to latents that are not finite in float16, also when "
        f"encoded in fp32: {', '.join(bad[:5])} (view {shard.view})",
        "look at these images; leave them out of the data set if they are damaged",
    )
