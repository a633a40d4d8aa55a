"""What a study's runs are trained and scored on: its stores, and a manifest for baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm.baseline.pixels import ManifestImages, open_manifest
from lmm.splits import CONTENT, images_by_split, rows_of_split
from lmm.study.grid import LMM, STORE, Grid
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore, open_store


@dataclass(frozen=True)
class Source:
    """What runs are trained on, read once: a store, and its images where there are baselines."""

    store: LatentStore
    receipt: dict[str, Any]
    images: ManifestImages | None = None

    def made_from(self, model: str, fold: int | None) -> dict[str, dict[str, Any]]:
        """What the runs of a model and fold say of their data, by their key of run.json."""
        if model == LMM:
            return {"store": {"receipt": self.receipt}}
        assert self.images is not None, "read_grid has asked for a manifest"
        split = images_by_split(self.images.samples, fold)  # of which the digest says nothing
        digest, size = self.images.manifest.digest, self.images.size
        return {"manifest": {"digest": digest, "size": size, "images": split}}


def open_sources(grid: Grid, latents: str | None) -> dict[str, Source]:
    """The stores of a grid by name, "" of one that has none, and the images of its manifest.

    latents  URL of the store, of a grid that names none
    raises   UsageError when the grid and `latents` name both a store, or neither; ArtefactError for
             a store that is not finished, or when stores and manifest do not hold the same images
    """
    sources = {name: _source(grid, url) for name, url in _urls(grid, latents).items()}
    for source in sources.values():
        if source.images:
            _require_same_splits(source.store, source.images)
    _require_same_images(grid, {name: one.store for name, one in sources.items()})
    return sources


def _urls(grid: Grid, latents: str | None) -> dict[str, str]:
    if grid.stores and latents:
        raise UsageError(
            f"the grid {grid.name} names its stores, and --latents {latents} is another",
            "leave --latents out, or take stores out of the grid",
        )
    if not grid.stores and not latents:
        raise UsageError(
            f"the grid {grid.name} names no store", "--latents STORE, or stores: in the grid"
        )
    used = {one[STORE] for one in grid.settings if STORE in one}
    given = {name: url for name, url in grid.stores.items() if name in used}
    urls = given or {"": str(latents)}
    # Snakemake works in the study's folder.
    return {name: url if "://" in url else str(Path(url).resolve()) for name, url in urls.items()}


def _source(grid: Grid, url: str) -> Source:
    store = open_store(url)
    store.require_complete()
    images = None if grid.manifest is None else open_manifest(grid.manifest, store.size)
    return Source(store, store.receipt() or {}, images)


def _require_same_splits(store: LatentStore, images: ManifestImages) -> None:
    """Raise ArtefactError unless baselines are trained and scored on the images that LMMs are."""
    ours, theirs = (images_by_split(one.samples) for one in (store, images))
    other = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    if other:
        raise ArtefactError(
            f"{store.url} and {images.url} hold other images in split {', '.join(other)}: the "
            "scores of LMMs and baselines would not compare",
            "name the manifest that the store was encoded from",
        )


def _require_same_images(grid: Grid, stores: Mapping[str, LatentStore]) -> None:
    """Raise ArtefactError unless the stores hold the same images to be scored, at one size."""
    (first_name, first), *others = stores.items()
    for name, store in others:
        if store.size != first.size:
            raise ArtefactError(
                f"the stores are of two sizes, {first_name} of {first.size} px and {name} of "
                f"{store.size} px: scores of masks of two sizes do not compare",
                "encode them at one --size",
            )
        if _scored(grid, store) != _scored(grid, first):
            raise ArtefactError(
                f"the stores {first_name} and {name} hold other images in split {grid.split}: "
                "their scores do not compare",
                "encode both from one manifest",
            )


def _scored(grid: Grid, store: LatentStore) -> list[tuple[Any, ...]]:
    """Names and content of the images that are scored."""
    rows = [rows_of_split(store.samples, grid.split, fold) for fold in grid.folds]
    columns = ("sample_id", *CONTENT)
    return sorted(row for one in rows for row in store.samples[one].select(columns).rows())
