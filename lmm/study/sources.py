"""What a study's runs are trained and scored on: its stores, and a manifest for baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm.baseline.pixels import Images, ManifestImages, open_manifest
from lmm.splits import CONTENT, rows_of_split
from lmm.study.grid import LMM, STORE, Grid
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore, open_store


@dataclass(frozen=True)
class Source:
    """What runs are trained on, read once: a store, and its images where there are baselines."""

    store: LatentStore
    receipt: dict[str, Any]
    images: ManifestImages | None = None

    def made_from(self, model: str) -> dict[str, dict[str, Any]]:
        """What the runs of a model say of their data, by their key of run.json."""
        if model == LMM:
            return {"store": {"receipt": self.receipt}}
        assert self.images is not None, "read_grid has asked for a manifest"
        return {"manifest": {"digest": self.images.manifest.digest, "size": self.images.size}}


def open_sources(grid: Grid, latents: str | None) -> dict[str, Source]:
    """The stores of a grid by name, "" of one that has none, and the images of its manifest.

    latents  URL of the store, of a grid that names none
    raises   UsageError when the grid and `latents` name both a store, or neither; ArtefactError for
             a store that is not finished, or when stores and manifest do not hold the same images
    """
    sources = {name: _source(grid, url) for name, url in _urls(grid, latents).items()}
    held: dict[str, Images] = {f"store {name}": one.store for name, one in sources.items()}
    images = next(iter(sources.values())).images
    _require_same_images(grid, held | ({"manifest": images} if images else {}))
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


def _require_same_images(grid: Grid, sources: Mapping[str, Images]) -> None:
    """Raise ArtefactError unless all hold the same images to be scored, at one size."""
    (first_name, first), *others = sources.items()
    for name, images in others:
        if images.size != first.size:
            raise ArtefactError(
                f"the stores are of two sizes, {first_name} of {first.size} px and {name} of "
                f"{images.size} px: scores of masks of two sizes do not compare",
                "encode them at one --size",
            )
        if _scored(grid, images) != _scored(grid, first):
            raise ArtefactError(
                f"{first_name} and {name} hold other images in split {grid.split}: "
                "their scores do not compare",
                "encode from the manifest that baselines are trained on, all stores from one",
            )


def _scored(grid: Grid, images: Images) -> list[tuple[Any, ...]]:
    """Names and content of the images that are scored."""
    samples = images.samples
    rows = [rows_of_split(samples, grid.split, fold) for fold in grid.folds]
    columns = ("sample_id", *CONTENT)
    return sorted(row for one in rows for row in samples[one].select(columns).rows())
