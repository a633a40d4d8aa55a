"""One writer at a time: a lock beside the store, which says who holds it and outlives no process.

STORE.lock is held by a writer of the whole store, or for moments by a partition while it prepares
or finishes; STORE.2-of-4.lock by the partition 2/4 while it encodes its shards. On a disk the
operating system keeps the lock and frees it when its owner ends, however that may be; on an object
store it is a lease.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ArtefactError
from pipeline.places import file_system
from pipeline.store.lease import Lease

_POLL_S = 0.2
_PARTITION = "partition"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}


@dataclass(frozen=True)
class Partition:
    """Share `number` of `count` of a store's shards, number from 1; no two share a shard."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class WriterLock:
    """A lock while it is held; whoever writes asks it before each shard."""

    def __init__(self, url: str, lock: "_Lock") -> None:
        self._url = url
        self._lock = lock

    def require_held(self) -> None:
        """Raise ArtefactError when it was taken over, removed, or not renewed in time."""
        if not self._lock.still_held():
            raise ArtefactError(
                f"lost the lock {self._url}: this process was stopped for too long, or the lock "
                "was taken or removed",
                "see who else writes to the store; then run the same command again: what was "
                "finished before is kept",
            )


@contextmanager
def exclusive(
    url: str, suffix: str, what: str, *, wait_for: str | None = None
) -> Iterator[WriterLock]:
    """Hold the lock `url` + `suffix` for `what`, a word for whoever finds it held.

    wait_for  wait for those whose word begins so to give it back, instead of being refused
    raises    ArtefactError naming owner, age and lock when someone else holds it
    """
    url = url.rstrip("/")
    fs, path = file_system(url + suffix)
    lock = _lock_at(fs, path, what)
    while not lock.take():
        if (owner := lock.owner()) is None:  # released between the two looks
            continue
        if wait_for is None or not str(owner.get("what")).startswith(wait_for):
            raise _HeldError(url, url + suffix, owner)
        time.sleep(_POLL_S)
    try:
        yield WriterLock(url + suffix, lock)
    finally:
        lock.release()


@contextmanager
def writer_lock(url: str, what: str = "encode") -> Iterator[WriterLock]:
    """Hold a store for one writer alone.

    raises  ArtefactError naming owner, age and lock when someone else writes to it
    """
    with exclusive(url, ".lock", what) as lock:
        for path, owner in sweep_partitions(url).items():
            raise _HeldError(url, path, owner)
        yield lock


@contextmanager
def shared_lock(url: str, partition: Partition) -> Iterator[WriterLock]:
    """Hold a store for the moments in which a partition prepares or finishes it.

    Waits for other partitions, which do the same, but not for a writer of the whole store.
    """
    with exclusive(url, ".lock", f"{_PARTITION} {partition}", wait_for=_PARTITION) as lock:
        yield lock


@contextmanager
def partition_lock(url: str, partition: Partition) -> Iterator[WriterLock]:
    """Hold the shards of one partition; taken while the shared lock is held.

    raises  ArtefactError when it is taken, or when partitions of another count are at work
    """
    for other, owner in sweep_partitions(url).items():
        if not other.endswith(f"-of-{partition.count}.lock"):
            raise _HeldError(url, other, owner)
    suffix = f".{partition.number}-of-{partition.count}.lock"
    with exclusive(url, suffix, f"{_PARTITION} {partition}") as lock:
        yield lock


def sweep_partitions(url: str) -> dict[str, dict[str, Any]]:
    """Remove the locks that dead partitions left; owners of the others, by the URL of their lock.

    Called while `STORE.lock` is held, so that no partition begins meanwhile.
    """
    return _sweep(url, "*-of-*")


def sweep_locks(url: str) -> None:
    """Remove every lock that the dead left beside a store: partitions, and teachers of students."""
    _sweep(url, "*")


def _sweep(url: str, which: str) -> dict[str, dict[str, Any]]:
    """Remove the locks `STORE.which.lock` of the dead; owners of the others, by their URL."""
    url = url.rstrip("/")
    fs, root = file_system(url)
    fs.invalidate_cache()
    living = {}
    for path in fs.glob(f"{_escaped(root)}.{which}.lock"):
        lock = _lock_at(fs, str(path), "sweep", wait_s=0)
        if lock.take():
            lock.release()
        elif (owner := lock.owner()) is not None:
            living[url + str(path).removeprefix(root)] = owner
    return living


def _escaped(path: str) -> str:
    """A path in which glob takes every character for itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


class _HeldError(ArtefactError):
    """Someone else holds the lock."""

    def __init__(self, url: str, lock: str, owner: dict[str, Any]) -> None:
        who = "an unknown writer"
        if {"what", "pid", "host", "since"} <= owner.keys():
            who = "{what}, process {pid} on {host}".format(**owner)
            who += f", for {time.time() - owner['since']:.0f} s"
        super().__init__(
            f"{url} is held by {who}", f"wait for it, or end it; if it is long gone, remove {lock}"
        )


class _Lock(Protocol):
    """What holds a path for one owner: the operating system, or a lease."""

    def take(self) -> bool: ...
    def owner(self) -> dict[str, Any] | None: ...
    def still_held(self) -> bool: ...
    def release(self) -> None: ...


def _lock_at(fs: Any, path: str, what: str, wait_s: float = _POLL_S) -> _Lock:
    owner = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    return (
        _FileLock(path, owner, wait_s)
        if isinstance(fs, LocalFileSystem)
        else Lease(fs, path, owner)
    )


class _FileLock:
    """A file that the operating system locks, with its owner as content.

    wait_s  how long another may hold it, who is seen only once it has signed
    """

    def __init__(self, path: str, owner: dict[str, Any], wait_s: float) -> None:
        self._path = Path(path)
        self._content = json.dumps(owner).encode()
        self._file = (0, 0)
        self._lock = FileLock(
            path,
            timeout=wait_s,
            thread_local=False,
            fallback_to_soft=False,  # that a file is there says nothing of whether its owner lives
            on_acquired=self._sign,
        )

    def _sign(self, descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, self._content)
        self._file = _identity(os.fstat(descriptor))

    def take(self) -> bool:
        try:
            self._lock.acquire()
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise ArtefactError(
                f"the file system of {self._path} has no locks: {error.strerror}",
                "put it on a local disk or an object store",
            ) from error
        return True

    def owner(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):  # held by what is none of ours
            return {}

    def still_held(self) -> bool:
        """Whether the file is still there: another can lock one that was put in its place."""
        with suppress(FileNotFoundError):
            return _identity(self._path.stat()) == self._file
        return False

    def release(self) -> None:
        if self.still_held():
            with suppress(PermissionError):  # where an open file stays, filelock removes it
                self._path.unlink()  # while it is locked: who waits for it makes a new one
        self._lock.release()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
