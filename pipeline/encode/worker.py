"""A Dask worker that encodes: store and tokenizer opened once, then a block of samples a task."""

import asyncio
import threading
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from distributed import Worker, WorkerPlugin, get_worker

from pipeline.ahead import map_ahead
from pipeline.device import choose_device
from pipeline.encode.blocks import (
    Shard,
    encode_shard,
    missing_cells,
    room,
    shards_of,
    stack_pixels,
    write_shard,
)
from pipeline.encode.cells import CellEncoder
from pipeline.errors import ArtefactError, InputError
from pipeline.memory import keep_freed_memory
from pipeline.places import is_folder
from pipeline.samples import decode_sample
from pipeline.store import LatentStore, open_store
from pipeline.tokenizer import load_tokenizer_of


class Encoding(WorkerPlugin):  # type: ignore[misc]
    """What a worker needs in order to encode; made by the client, opened on each worker.

    url         the store, as workers find it
    tokenizer   its name or place, as workers find it; what it gives must have the store's digest
    device      as `choose_device` takes it
    batch_size  cells at a time through the tokenizer; None finds one that fits in memory
    fault       on a worker: why it cannot encode, else None
    """

    def __init__(self, url: str, tokenizer: str, device: str, batch_size: int | None) -> None:
        self.url = url
        self.tokenizer = tokenizer
        self.device = device
        self.batch_size = batch_size
        self.version = version("gms-lmm")
        self.fault: str | None = "has not begun"

    async def setup(self, worker: Worker) -> None:
        """Open everything; what stands in the way is kept for whoever asks, and never raised."""
        try:
            await asyncio.to_thread(self._open, worker)
            self.fault = None
        except (
            Exception
        ) as error:  # of whatever kind: the client hears of it, and which worker it is
            self.fault = getattr(error, "message", f"{type(error).__name__}: {error}")

    def _open(self, worker: Worker) -> None:
        found = version("gms-lmm")
        if found != self.version:
            raise ArtefactError(f"it has gms-lmm {found}, not {self.version}", "install the same")
        keep_freed_memory()
        self._threads = int(worker.state.nthreads)
        self._turn = threading.Lock()
        self._store = open_store(self.url, "r+")
        self._source = self._store.source()
        if not is_folder(self._source.root):
            raise InputError(f"it sees no images: {self._source.root} is not there", "mount it")
        device = choose_device(self.device)
        if device.type == "cuda" and device.index is None and isinstance(worker.name, int):
            # Of N processes on one machine each takes the next GPU.
            device = torch.device("cuda", worker.name % torch.cuda.device_count())
        described = {**self._store.tokenizer, "name": self.tokenizer}
        precision = self._store.attributes["preprocessing"]["precision"]
        loaded = load_tokenizer_of(described, device)
        self._encoder = CellEncoder(loaded, precision, self.batch_size)

    def encode(self, block: int) -> list[str]:
        """Encode what a block lacks, every view; a sentence for each sample that cannot be.

        One block at a time goes through the tokenizer, with as many threads as Dask gave the
        worker; the next may be decoded meanwhile.
        """
        store = self._store
        todo = missing_cells(store, block)
        start = store.rows_of(block).start
        places = start + np.flatnonzero(todo.any(axis=0))
        results = list(map_ahead(self._decode, places.tolist()))
        faulty = np.array([isinstance(result, str) for result in results], np.bool_)
        bad = [result for result in results if isinstance(result, str)]
        todo[:, places[faulty] - start] = False
        decoded = [result for result in results if not isinstance(result, str)]
        if not decoded:
            return bad
        pixels = stack_pixels(places[~faulty], decoded)
        with self._turn, room(self.url):
            torch.set_num_threads(self._threads)  # each thread of Dask's has a number of its own
            for shard in shards_of(store, block, todo):
                cells, finite = encode_shard(store, shard, self._encoder, pixels)
                write_shard(
                    store,
                    replace(shard, rows=shard.rows[finite]),
                    {name: values[finite] for name, values in cells.items()},
                )
                bad += _not_finite(store, shard, finite)
        return bad

    def _decode(self, row: int) -> tuple[np.ndarray, np.ndarray] | str:
        """Image and mask of a sample, or what is wrong with them."""
        sample = self._store.samples.row(row, named=True)
        try:
            return decode_sample(self._source, sample, self._store.size)
        except InputError as error:
            return f"{sample['sample_id']}: {error.message}"


def _not_finite(store: LatentStore, shard: Shard, finite: np.ndarray) -> list[str]:
    names = store.samples["sample_id"].gather(shard.rows[~finite]).to_list()
    return [f"{name}: its latents are not finite in float16 (view {shard.view})" for name in names]


# --- what a client calls by name


def fault_of(name: str, dask_worker: Worker) -> str | None:
    """Why a worker cannot encode, or None."""
    plugin = dask_worker.plugins.get(name)
    return plugin.fault if isinstance(plugin, Encoding) else "has not begun"


def encode_block(name: str, block: int) -> list[str]:
    """Encode one block on whichever worker this is; what `Encoding.encode` returns.

    raises  ArtefactError when it came later than the others and cannot encode
    """
    worker = get_worker()
    fault = fault_of(name, worker)
    if fault:
        raise ArtefactError(f"worker {worker.address}: {fault}", "stop this worker, or mend it")
    bad: list[str] = worker.plugins[name].encode(block)
    return bad


def as_seen_by_workers(place: str) -> str:
    """A path on a disk in full, for workers run in other folders; URLs and names as they are."""
    path = Path(place).expanduser()
    return place if "://" in place or not path.exists() else str(path.resolve())
