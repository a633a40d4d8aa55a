"""Pixels of a shard's cells to what is stored of them, in batches as large as memory allows."""

import numpy as np
import polars as pl
import torch

from pipeline.augment import apply_views
from pipeline.device import is_out_of_memory
from pipeline.errors import UsageError
from pipeline.pixels import mask_pixels
from pipeline.tokenizer import Tokenizer


class CellEncoder:
    """Cells through the tokenizer in batches as large as memory allows."""

    def __init__(self, tokenizer: Tokenizer, precision: str, batch_size: int | None) -> None:
        self.tokenizer = tokenizer
        self.precision = precision
        # A GPU wants whole shards; a CPU is fastest with what fits its cache.
        self.batch_size = batch_size or (64 if tokenizer.device.type == "cuda" else 1)

    def __call__(
        self, images_u8: torch.Tensor, masks: torch.Tensor, plan: pl.DataFrame
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Cells as stored, and whether each is finite; images (n, 3, S, S), masks (n, S, S)."""
        cells, finite = self._encode(images_u8, masks, plan, self.precision)
        if not finite.all() and self.precision != "fp32":
            # Half precision overflows on some images that full precision encodes well.
            bad = np.flatnonzero(~finite)
            again, finite[bad] = self._encode(
                images_u8[bad], masks[bad], plan[bad.tolist()], "fp32"
            )
            for name, values in again.items():
                cells[name][bad] = values
        return cells, finite

    def _encode(
        self, images_u8: torch.Tensor, masks: torch.Tensor, plan: pl.DataFrame, precision: str
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        batches: list[dict[str, torch.Tensor]] = []
        start = 0
        while start < len(images_u8):
            rows = slice(start, start + self.batch_size)
            try:
                batches.append(self._batch(images_u8[rows], masks[rows], plan[rows], precision))
                start += self.batch_size
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise UsageError(
                        f"one cell at a time is more than the memory of {self.tokenizer.device}",
                        "a smaller --size, --precision bf16 or --device cpu",
                    ) from error
                self.batch_size //= 2
        # One transfer an array and shard: the device never waits for the host within a shard.
        cells = {
            name: torch.cat([batch[name] for batch in batches]).cpu().numpy() for name in batches[0]
        }
        latents = [values for name, values in cells.items() if name != "mask"]
        finite = np.logical_and.reduce([np.isfinite(x).all(axis=(1, 2, 3)) for x in latents])
        return cells, finite

    def _batch(
        self, images_u8: torch.Tensor, masks: torch.Tensor, plan: pl.DataFrame, precision: str
    ) -> dict[str, torch.Tensor]:
        device = self.tokenizer.device
        image_pm1, mask = apply_views(images_u8.to(device), masks.to(device), plan)
        pixels_pm1 = torch.cat([image_pm1, mask_pixels(mask)])
        mean, std = self.tokenizer.encode(pixels_pm1, precision)
        count = len(mask)
        cells = {"image_mean": mean[:count].half(), "mask_mean": mean[count:].half(), "mask": mask}
        if std is not None:
            cells["image_std"] = std[:count].half()
        return cells
