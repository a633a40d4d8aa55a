"""One writer at a time: a lock file beside the store names who writes, and where the owner died.

STORE.lock is held by a writer of the whole store, or for moments by a partition while it prepares
or finishes; STORE.2-of-4.lock by the partition 2/4 while it encodes its shards.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ArtefactError

BEAT_S = 30  # between the signs of life that an owner writes
STALE_S = 600  # without a sign of life, after which an owner on another machine counts as dead
_POLL_S = 0.2


@dataclass(frozen=True)
class Partition:
    """Share `number` of `count` of a store's shards, number from 1; no two share a shard."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@contextmanager
def writer_lock(url: str, what: str = "encode") -> Iterator[None]:
    """Hold a store for one writer alone.

    raises  ArtefactError naming owner and age when someone else writes to it
    """
    with _held(f"{url.rstrip('/')}.lock", what):
        partitions = living_partitions(url)
        if partitions:
            raise _HeldError(url, next(iter(partitions.values())))
        yield


@contextmanager
def shared_lock(url: str, partition: Partition) -> Iterator[None]:
    """Hold a store for the moments in which a partition prepares or finishes it.

    Waits for other partitions, which do the same, but not for a writer of the whole store.
    """
    held = ExitStack()
    while True:
        try:
            held.enter_context(_held(f"{url.rstrip('/')}.lock", f"partition {partition}"))
            break
        except _HeldError as error:
            if not str(error.owner.get("what", "")).startswith("partition "):
                raise
            time.sleep(_POLL_S)
    with held:
        yield


@contextmanager
def partition_lock(url: str, partition: Partition) -> Iterator[None]:
    """Hold the shards of one partition; taken while the shared lock is held.

    raises  ArtefactError when it is taken, or when partitions of another count are at work
    """
    for other, owner in living_partitions(url).items():
        if not other.endswith(f"-of-{partition.count}.lock"):
            raise _HeldError(url, owner)
    path = f"{url.rstrip('/')}.{partition.number}-of-{partition.count}.lock"
    with _held(path, f"partition {partition}"):
        yield


def living_partitions(url: str) -> dict[str, dict[str, Any]]:
    """Owners of the partitions that are being encoded, by the path of their lock."""
    fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
    fs.invalidate_cache()
    found = {str(path): _owner(fs, str(path)) for path in fs.glob(f"{_escaped(root)}.*-of-*.lock")}
    return {path: owner for path, owner in found.items() if owner and not _is_dead(owner)}


def _escaped(path: str) -> str:
    """A path in which glob takes every character for itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


class _HeldError(ArtefactError):
    """Someone else holds the lock."""

    def __init__(self, url: str, owner: dict[str, Any]) -> None:
        age = time.time() - owner["since"]
        super().__init__(
            f"{url} is held by {owner['what']}, process {owner['pid']} on {owner['host']}, "
            f"for {age:.0f} s",
            f"wait for it, or end it; if it is long gone, remove {url}",
        )
        self.owner = owner


@contextmanager
def _held(url: str, what: str) -> Iterator[None]:
    """Create the lock file, or take over a dead owner's; keep it alive; remove it at the end."""
    fs, path = fsspec.core.url_to_fs(url)
    owner = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    while not _create(fs, path, owner):
        other = _owner(fs, path)
        if other is None:  # released between the two looks
            continue
        if not _is_dead(other):
            raise _HeldError(url, other)
        _bury(fs, path, owner)
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(fs, path, owner, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        fs.rm_file(path)


def _create(fs: Any, path: str, owner: dict[str, Any]) -> bool:
    """Create the file if nobody has; False when it is there."""
    content = json.dumps({**owner, "alive": time.time()}).encode()
    try:
        if isinstance(fs, LocalFileSystem):
            fs.makedirs(fs._parent(path), exist_ok=True)
            with fs.open(path, "xb") as file:
                file.write(content)
        else:  # on S3 a conditional write, which only one of several can win
            fs.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    return True


def _bury(fs: Any, path: str, owner: dict[str, Any]) -> None:
    """Remove a dead owner's lock; of several that do so at once, all but the last give way."""
    fs.pipe_file(path, json.dumps({**owner, "alive": time.time()}).encode())
    time.sleep(2 * _POLL_S)
    heir = _owner(fs, path)
    if heir and heir["since"] == owner["since"] and heir["pid"] == owner["pid"]:
        fs.rm_file(path)


def _beat(fs: Any, path: str, owner: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        fs.pipe_file(path, json.dumps({**owner, "alive": time.time()}).encode())


def _owner(fs: Any, path: str) -> dict[str, Any] | None:
    """Who holds a lock; None when nobody does any more."""
    fs.invalidate_cache()
    for _ in range(5):
        try:
            return dict(json.loads(fs.cat_file(path)))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:  # seen between creation and content
            time.sleep(_POLL_S)
    # Its owner died in that moment.
    return {"what": "an unknown writer", "pid": 0, "host": "", "since": 0.0, "alive": 0.0}


def _is_dead(owner: dict[str, Any]) -> bool:
    if owner["host"] == socket.gethostname():
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    return bool(time.time() - owner["alive"] > STALE_S)
