"""What is scored: the clean cells of splits and the frozen decoder, read and loaded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from lmm.decoder import MaskDecoder
from lmm.latents import Latents, load_latents
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
