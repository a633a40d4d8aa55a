"""Blocks of a store encoded by the workers of a Dask cluster: whichever of them dies, none is lost.

A task is the name of the work and the number of a block; what the block lacks, its worker finds in
the store. Nothing else goes through the scheduler, and at most two blocks a worker are under way.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice

import dask
import numpy as np
import torch
from distributed import CancelledError, Client, Future, KilledWorker, LocalCluster, as_completed
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from pipeline.encode.worker import Encoding, as_seen_by_workers, encode_block, fault_of
from pipeline.errors import ArtefactError, InputError, UsageError
from pipeline.store import LatentStore
from pipeline.store.lock import WriterLock
from pipeline.telling import Progress, some_of, ticking

WAIT_S = 10
_IN_FLIGHT = 2  # blocks a worker: the one in hand, and the next
_LOCAL = {
    # What a nanny puts into its own environment before it starts a worker: threads are ours to set.
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.scheduler.allowed-failures": 1,
}


@contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """A client of a cluster that has a worker.

    scheduler  tcp://HOST:PORT, or local:N for N processes on this machine, which share the threads
               that torch has here
    raises     UsageError for other words; ArtefactError when nobody answers, or no worker is there
    """
    kind, _, number = scheduler.partition(":")
    with ExitStack() as held:
        if kind == "local" and number.isdigit() and int(number):
            cluster = held.enter_context(_local_cluster(int(number)))
            client = held.enter_context(Client(cluster, set_as_default=False))
        elif "://" in scheduler:
            client = held.enter_context(_client_of(scheduler))
        else:
            raise UsageError(
                f"--scheduler {scheduler!r} is no cluster",
                "--scheduler tcp://HOST:PORT of a Dask scheduler, or local:N for N processes here",
            )
        yield client


@contextmanager
def _local_cluster(workers: int) -> Iterator[LocalCluster]:
    """Processes on this machine; the environment of this one stays as it is."""
    before = dict(os.environ)
    try:
        with (
            dask.config.set(_LOCAL),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=max(1, torch.get_num_threads() // workers),
                memory_limit=None,
                dashboard_address="127.0.0.1:0",
                silence_logs="CRITICAL",
            ) as cluster,
        ):
            yield cluster
    finally:
        os.environ.clear()  # a nanny sets more than what it is told to
        os.environ.update(before)


@contextmanager
def _client_of(address: str) -> Iterator[Client]:
    start = f"start one with dask worker {address}"
    try:
        client = Client(address, timeout=WAIT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ArtefactError(
            f"no Dask scheduler answers at {address}: {reason}", "start one with dask scheduler"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WAIT_S)
        except TimeoutError as error:
            what = f"the Dask scheduler at {address} has had no worker for {WAIT_S} s"
            raise ArtefactError(what, start) from error
        yield client


def encode_cells(
    client: Client,
    store: LatentStore,
    todo: np.ndarray,
    tokenizer: str,
    device: str,
    batch_size: int | None,
    lock: WriterLock,
    progress: Progress | None,
) -> None:
    """Encode the blocks with cells to do, on all workers that are there and on those that come.

    A block whose workers die is begun anew elsewhere, and does what is missing. One that has lost
    as many as the scheduler allows (distributed.scheduler.allowed-failures) is tried once more when
    no other is under way.

    todo       bool [view, sample]
    tokenizer  name or place; device and batch_size as `Encoding` has them
    raises     ArtefactError naming the workers that cannot encode, or when the scheduler is gone;
               InputError naming the samples that cannot be encoded, when all others are
    """
    of_block = np.add.reduceat(todo.sum(axis=0), np.arange(0, todo.shape[1], store.shard_samples))
    tick = ticking(progress, int(of_block.sum()))
    place = (as_seen_by_workers(store.url), as_seen_by_workers(tokenizer))
    with _while_there(client), _prepared(client, Encoding(*place, device, batch_size)) as name:
        blocks = iter(np.flatnonzero(of_block).tolist())
        bad: list[str] = []
        deadly: list[int] = []

        def begin(count: int, last: bool) -> Iterator[Future]:
            for block in islice(blocks, max(0, count)):
                lock.require_held()
                key = f"{name}{' alone' if last else ''} {block}"  # a key's failure is remembered
                yield client.submit(encode_block, name, block, key=key, pure=False)

        def take(future: Future, last: bool) -> None:
            block = int(future.key.rpartition(" ")[2])
            try:
                bad.extend(future.result())
            except KilledWorker:
                if last:
                    bad.append(f"{_samples_of(store, block)}: the process that encodes them dies")
                else:
                    deadly.append(block)
                    return
            tick(int(of_block[block]))

        for last in (False, True):
            running = as_completed(begin(1 if last else _room(client), last), loop=client.loop)
            for future in running:
                take(future, last)
                del future  # so that the scheduler forgets it
                running.update(begin(1 if last else _room(client) - running.count(), last))
            blocks = iter(deadly)
    if bad:
        raise InputError(
            f"{len(bad)} of the samples cannot be encoded: {some_of(bad, separator='; ')}",
            "mend these files or leave them out, and run gms-lmm ingest again; all others are "
            "encoded",
        )


@contextmanager
def _while_there(client: Client) -> Iterator[None]:
    """Say so when the scheduler goes; what was finished before stays."""
    address = client.scheduler.address
    try:
        yield
    except (CancelledError, CommClosedError, ClosedClientError, TimeoutError) as error:
        raise ArtefactError(
            f"the Dask scheduler at {address} has gone",
            "start it and its workers again, then run the same command again: the finished shards "
            "are kept",
        ) from error


@contextmanager
def _prepared(client: Client, encoding: Encoding) -> Iterator[str]:
    """Every worker ready to encode, and told to forget it in the end; the name of the work."""
    name = f"gms-lmm encode {encoding.url}"
    try:
        client.register_plugin(encoding, name=name)
        faults = client.run(fault_of, name)
    except ImportError as error:
        raise ArtefactError(
            f"a worker has no gms-lmm: {error}", "install it where the workers run"
        ) from error
    try:
        if told := [f"{worker}: {fault}" for worker, fault in faults.items() if fault]:
            raise ArtefactError(
                f"{len(told)} of {len(faults)} workers cannot encode: {some_of(told)}",
                "workers need the paths of this machine, and what --device asks for",
            )
        yield name
    finally:
        with suppress(Exception):  # of a cluster that is gone there is nothing to be had back
            client.unregister_worker_plugin(name)


def _room(client: Client) -> int:
    """How many blocks may be under way."""
    return _IN_FLIGHT * max(1, int(client.scheduler_info(n_workers=0).get("n_workers", 0)))


def _samples_of(store: LatentStore, block: int) -> str:
    names = store.samples["sample_id"][store.rows_of(block)]
    return f"{names[0]} … {names[-1]} ({len(names)} samples)"
