"""Reclaim the room of cells that are no longer wanted: departed samples, views not asked for."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UsageError
from pipeline.manifest import Manifest
from pipeline.places import file_system
from pipeline.store.copy import copy_rows
from pipeline.store.latent_store import open_store
from pipeline.store.lock import writer_lock
from pipeline.telling import Progress


@dataclass(frozen=True)
class Pruned:
    """What was dropped, and the bytes that gave."""

    samples: int
    views: int
    bytes_before: int
    bytes_after: int


def prune(url: str, manifest: Manifest | None = None, progress: Progress | None = None) -> Pruned:
    """Copy what is wanted into a new store beside the old one, then put it in its place.

    Nothing is encoded. Whenever the process dies the old store or the new one is there, whole.

    manifest  keep only its samples; None keeps those of the manifest last encoded
    progress  called with (shards written, shards to write)
    raises    UsageError for a store that is not on a local disk, where a folder can be renamed, or
              when nothing would be left; ArtefactError when someone writes to it or it is damaged
    """
    if not isinstance(file_system(url)[0], LocalFileSystem):
        raise UsageError(
            f"{url} is not on a local disk, where a pruned copy can take its place at once",
            "encode the manifest into a new store there, or prune a local copy and upload it",
        )
    with writer_lock(url, "prune") as lock:
        _finish_swap(url)
        store = open_store(url)
        keep = store.live.copy()
        if manifest is not None:
            kept = manifest.frame["sample_id"].to_list()
            keep &= store.samples["sample_id"].is_in(kept).to_numpy()
        if not keep.any():
            raise UsageError(f"no sample of {url} would be left", "delete it if that is meant")
        views = store.array("key").shape[0]
        before = sum(store.files.values())
        if not keep.all() or views > store.views:
            place, fresh, old = _places(url)
            _remove(fresh)
            copy_rows(store, np.flatnonzero(keep), str(fresh), progress=progress)
            lock.require_held()
            place.rename(old)
            _finish_swap(url)
        after = sum(open_store(url).files.values())
    return Pruned(int((~keep).sum()), views - store.views, before, after)


def _places(url: str) -> tuple[Path, Path, Path]:
    """The store, its pruned copy while that is being written, the old store while they change."""
    place = Path(file_system(url.rstrip("/"))[1])
    return (
        place,
        place.with_name(f"{place.name}.pruned"),
        place.with_name(f"{place.name}.old"),
    )


def _finish_swap(url: str) -> None:
    """Put the copy, whole since the old store is aside, in its place; also for a killed prune."""
    place, fresh, old = _places(url)
    if old.exists():
        if not place.exists():
            fresh.rename(place)
        _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
