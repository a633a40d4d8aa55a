"""Pixels of a split in memory, and the batches of an epoch: the images that `encode` encodes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
import torch

from lmm.baseline.settings import FRESH, BaselineSettings
from lmm.batches import shuffled, steps_per_epoch
from lmm.splits import require_some, rows_of_split
from pipeline.ahead import map_ahead
from pipeline.augment import apply_views, draw_views
from pipeline.manifest import Manifest, read_manifest
from pipeline.samples import decode_sample
from pipeline.seeds import seed_at


class Images(Protocol):
    """Images of samples at one size: a `LatentStore`, by what it was made from, or a manifest's.

    url      where that is
    name     what files made from it are called
    size     side of image and mask, px
    samples  rows of the manifest
    """

    @property
    def url(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def samples(self) -> pl.DataFrame: ...
    def source(self) -> Manifest:
        """The manifest, by which files are read."""


@dataclass(frozen=True)
class ManifestImages:
    """The images of a manifest at one size, without a store; see `Images`."""

    url: str
    manifest: Manifest
    size: int

    @property
    def name(self) -> str:
        """Stem of the manifest's file."""
        return Path(self.url).stem

    @property
    def samples(self) -> pl.DataFrame:
        """One row a sample."""
        return self.manifest.frame

    def source(self) -> Manifest:
        """The manifest itself."""
        return self.manifest


def open_manifest(path: str | Path, size: int) -> ManifestImages:
    """The images of a manifest at a size; raises as `pipeline.manifest.read_manifest` does."""
    return ManifestImages(str(path), read_manifest(path), size)


@dataclass(frozen=True)
class Pixels:
    """The clean images of a split, in order of sample_id.

    images_u8    (n, 3, S, S) uint8, 0…255
    clean_masks  (n, S, S) bool
    """

    sample_ids: list[str]
    images_u8: torch.Tensor
    clean_masks: torch.Tensor

    def __len__(self) -> int:
        return len(self.sample_ids)


def read_pixels(images: Images, split: str, fold: int | None = None) -> Pixels:
    """Decode the images and masks of a split, as `encode` does before any view.

    fold    of the run that reads them; see `lmm.splits.rows_of_split`
    raises  UsageError when split or fold has no sample; InputError when a file is gone or not the
            bytes that were ingested
    """
    rows = split_of(images, split, fold).to_dicts()
    manifest, size, n = images.source(), images.size, len(rows)
    images_u8 = np.empty((n, 3, size, size), np.uint8)
    masks = np.empty((n, size, size), np.bool_)
    decoded = map_ahead(lambda row: decode_sample(manifest, row, size), rows)
    for place, (image_u8, mask) in enumerate(decoded):
        images_u8[place], masks[place] = image_u8.transpose(2, 0, 1), mask
    names = [row["sample_id"] for row in rows]
    return Pixels(names, torch.from_numpy(images_u8), torch.from_numpy(masks))


def split_of(images: Images, split: str, fold: int | None = None) -> pl.DataFrame:
    """Rows of a split in order of sample_id; raises UsageError when there is none."""
    rows = rows_of_split(images.samples, split, fold)
    require_some(rows, images.url, images.samples, split)
    return images.samples[rows].sort("sample_id")


@dataclass(frozen=True)
class PixelBatch:
    """What one training step reads.

    image_pm1  (B, 3, S, S) float32 in [-1, 1]
    mask       (B, S, S) bool
    """

    image_pm1: torch.Tensor
    mask: torch.Tensor


class PixelBatches:
    """The training images: each sample once an epoch, in any of its views.

    With K views order and views of an epoch are those of a run on a store of K views that lies in
    memory, under the same seed, and the view of a sample is the very image that `encode` hands to
    the tokenizer. Fresh views: in epoch e each sample comes in its view e, which is never the clean
    one and in no store of fewer views.
    """

    def __init__(self, pixels: Pixels, settings: BaselineSettings, device: torch.device) -> None:
        self.pixels = pixels
        self.settings = settings
        self.device = device
        self.views = 1 if settings.views == FRESH else int(settings.views)
        self._plan = self._drawn(range(self.views))

    def __len__(self) -> int:
        return len(self.pixels)

    def epoch(self, epoch: int) -> Iterator[PixelBatch]:
        """The batches of one epoch, each made while the step before is taken."""
        size, seed = self.settings.batch_size, seed_at(self.settings.seed, epoch)
        plan = self._drawn([epoch]) if self.settings.views == FRESH else self._plan
        order, view = shuffled(len(self), self.views, torch.Generator().manual_seed(seed))

        def batch(step: int) -> PixelBatch:
            rows = slice(step * size, (step + 1) * size)
            return self._batch(order[rows], plan[(order * self.views + view)[rows].numpy()])

        yield from map_ahead(batch, range(steps_per_epoch(len(self), size)), ahead=1)

    def _drawn(self, views: range | list[int]) -> pl.DataFrame:
        return draw_views(self.pixels.sample_ids, views, self.settings.view_seed)

    def _batch(self, sample: torch.Tensor, plan: pl.DataFrame) -> PixelBatch:
        images_u8 = self.pixels.images_u8[sample].to(self.device, non_blocking=True)
        masks = self.pixels.clean_masks[sample].to(self.device, non_blocking=True)
        return PixelBatch(*apply_views(images_u8, masks, plan))
