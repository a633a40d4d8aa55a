"""What is scored: the clean cells of splits and the frozen decoder, or clean pixels, read once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from lmm.baseline.network import grey_maps
from lmm.baseline.pixels import Pixels
from lmm.decoder import MaskDecoder
from lmm.latents import Latents, load_latents
from lmm.model import predict_latents
from pipeline.store import LatentStore
from pipeline.tokenizer import load_tokenizer_of


@dataclass(frozen=True)
class Cells:
    """The clean cells of some splits of a store, with their masks, and views where they are read.

    parts    one for each split, in the store's order
    decoder  D in float32, whatever a run was trained in, so that scores of runs compare
    """

    store: LatentStore
    parts: Sequence[Latents]
    decoder: MaskDecoder

    def __len__(self) -> int:
        return len(self.sample_ids)

    @cached_property
    def sample_ids(self) -> list[str]:
        """In the store's order: one that has grown holds its samples in order of arrival."""
        return [name for part in self.parts for name in part.sample_ids]

    @cached_property
    def order(self) -> list[int]:
        """Places of the samples in order of sample_id, in which scores are written."""
        return sorted(range(len(self)), key=self.sample_ids.__getitem__)

    @property
    def truths(self) -> torch.Tensor:
        """Masks as stored, (n, H, W) bool, in the store's order."""
        return torch.cat([part.clean_masks for part in self.parts])

    def predicted(self, model: nn.Module) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
        """Ẑ_M of a model, (n, C, h, w), and D's grey maps of it, some at a time; by sample_id."""
        z_mask_hat = torch.cat([predict_latents(model, part) for part in self.parts])[self.order]
        return z_mask_hat, self.decoder.greys(z_mask_hat, of_one_shape=True)


@dataclass(frozen=True)
class PixelCells:
    """The clean images of a split, with their masks, as a baseline is scored on them."""

    pixels: Pixels

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def sample_ids(self) -> list[str]:
        """In order."""
        return self.pixels.sample_ids

    @property
    def order(self) -> list[int]:
        """As they are."""
        return list(range(len(self)))

    @property
    def truths(self) -> torch.Tensor:
        """(n, H, W) bool."""
        return self.pixels.clean_masks

    def predicted(self, model: nn.Module) -> tuple[None, Iterator[torch.Tensor]]:
        """No latents; the grey maps of a network, some at a time."""
        return None, grey_maps(model, self.pixels.images_u8)


def read_cells(
    store: LatentStore,
    splits: Sequence[str],
    device: torch.device,
    fold: int | None = None,
    *,
    views: int = 1,
) -> Cells:
    """The clean cells of some splits, on a device.

    views   how many are read, from the clean one on
    fold    of the run that is scored; see `lmm.splits.rows_of_split`
    raises  ArtefactError when the store is not finished, or its tokenizer's weights have changed;
            UsageError when a split has no sample
    """
    parts = [load_latents(store, name, views=views, fold=fold, device=device) for name in splits]
    return Cells(store, parts, MaskDecoder(load_tokenizer_of(store.tokenizer, device)))
