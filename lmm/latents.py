"""A split of a store in memory, batches of it as the LMM reads them, and batches of one shape."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lmm.splits import require_some, rows_of_split
from pipeline.ahead import map_ahead
from pipeline.store import LatentStore
from pipeline.telling import Progress


def model_latent(
    latent: torch.Tensor, scaling_factor: float, shift_factor: float = 0.0
) -> torch.Tensor:
    """A latent as the LMM reads it, from a latent as stored: z = s · (latent − m).

    The one place where the scaling factor is applied; `raw_latent` is its inverse.

    latent   (…, C, h, w) any float dtype, raw tokenizer units
    returns  the same shape, float32; of unit variance for natural images under SD-VAE
    source   Rombach et al. 2022, section 3.1; `scaling_factor` and `shift_factor` as diffusers
             has them in an autoencoder's configuration
    """
    return (latent.float() - shift_factor) * scaling_factor


def raw_latent(z: torch.Tensor, scaling_factor: float, shift_factor: float = 0.0) -> torch.Tensor:
    """A latent as the tokenizer's decoder reads it: z / s + m; (…, C, h, w) float32."""
    return z.float() / scaling_factor + shift_factor


@dataclass(frozen=True)
class Batch:
    """What one training step reads.

    z_image  (B, C, h, w) float32, scaled
    z_mask   (B, C, h, w) float32, scaled
    mask     (B, H, W) bool, or None when the split was loaded without masks
    """

    z_image: torch.Tensor
    z_mask: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class Latents:
    """One split of a store on one device.

    image_mean   (K, n, C, h, w) float16, raw tokenizer units
    image_std    likewise, or None where the split was loaded without
    mask_mean    (K, n, C, h, w) float16, raw tokenizer units
    mask_bits    (K, n, H, ⌈W/8⌉) uint8, eight pixels a byte, the first in the highest bit; or None
    """

    sample_ids: list[str]
    image_mean: torch.Tensor
    image_std: torch.Tensor | None
    mask_mean: torch.Tensor
    mask_bits: torch.Tensor | None
    size: int
    scaling_factor: float
    shift_factor: float

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def views(self) -> int:
        """Views of each sample."""
        return self.image_mean.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.image_mean.device

    def batch(
        self,
        view: torch.Tensor,
        sample: torch.Tensor,
        posterior: str = "mean",
        noise: torch.Tensor | None = None,
        device: torch.device | None = None,
    ) -> Batch:
        """The cells (view[i], sample[i]) as one batch, without a loop over them.

        view, sample  (B,) int64 on the split's device
        posterior     mean: z = s · (mean − m). sample: z = s · (mean + std · noise − m).
                      gms: z = s · (mean − m) + std · noise, with std not scaled, which is what the
                      GMS authors' code feeds and 1/s times too wide
        noise         (B, C, h, w) float32, standard normal; None adds none under any posterior
        device        where the batch and the noise are; None for the split's own. What is stored
                      is carried there, half as large as latents and an eighth as large as masks
        """

        def cells(array: torch.Tensor) -> torch.Tensor:
            return array[view, sample].to(device or self.device, non_blocking=True)

        mean = cells(self.image_mean).float()
        if noise is not None and posterior != "mean":
            assert self.image_std is not None, "loaded without std"
            spread = cells(self.image_std).float() * noise
            mean = mean + (spread if posterior == "sample" else spread / self.scaling_factor)
        scaling = (self.scaling_factor, self.shift_factor)
        return Batch(
            z_image=model_latent(mean, *scaling),
            z_mask=model_latent(cells(self.mask_mean), *scaling),
            mask=None if self.mask_bits is None else self.unpack(cells(self.mask_bits)),
        )

    def clean(self, at_a_time: int) -> Iterator[Batch]:
        """The clean cells (view 0, without noise) in order, some at a time."""
        for sample in torch.arange(len(self), device=self.device).split(at_a_time):
            yield self.batch(torch.zeros_like(sample), sample)

    @property
    def clean_masks(self) -> torch.Tensor:
        """Masks of the clean cells: (n, H, W) bool; only where masks were loaded."""
        assert self.mask_bits is not None
        return self.unpack(self.mask_bits[0])

    @property
    def z_mask(self) -> torch.Tensor:
        """Z_M of every cell, view after view: (K · n, C, h, w) float32, scaled."""
        means = self.mask_mean.flatten(0, 1)
        return model_latent(means, self.scaling_factor, self.shift_factor)

    def unpack(self, bits: torch.Tensor) -> torch.Tensor:
        """Masks from packed bits: (…, H, ⌈W/8⌉) uint8 → (…, H, W) bool."""
        places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
        pixels = (bits.unsqueeze(-1) >> places) & 1
        return pixels.flatten(-2)[..., : self.size].bool()


class SplitReader:
    """The cells of one split of a finished store, shard by shard.

    std     whether the posterior's standard deviation is read, where the store has it
    rows    those of the split to read, in the store and in its order; None for all
    places  rows of the split in the store; see `lmm.splits.rows_of_split`
    blocks  blocks of the store that hold any of them

    raises  ArtefactError when the store is not finished; UsageError when split or fold has no
            sample
    """

    def __init__(
        self,
        store: LatentStore,
        split: str,
        *,
        masks: bool,
        std: bool = False,
        fold: int | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        store.require_complete()
        self.store = store
        latents = [name for name in store.latent_arrays if std or name != "image_std"]
        self.names = [*latents, *(["mask"] if masks else [])]
        self.places = rows_of_split(store.samples, split, fold) if rows is None else rows
        require_some(self.places, store.url, store.samples, split)
        self.blocks: list[int] = np.unique(self.places // store.shard_samples).tolist()

    def rows(self, block: int) -> slice:
        """Which rows of the split lie in a block."""
        length = self.store.shard_samples
        first, last = np.searchsorted(self.places, [block * length, (block + 1) * length])
        return slice(int(first), int(last))

    def empty(self, *shape: int) -> dict[str, np.ndarray]:
        """Room for cells: arrays [*shape, …], latents float16, masks as bits."""
        return {
            name: np.empty((*shape, *self.shape(name)), np.uint8 if name == "mask" else np.float16)
            for name in self.names
        }

    def read(self, view: int, block: int, into: Mapping[str, np.ndarray]) -> None:
        """Put the split's cells of one shard into arrays [rows, …] as `empty` makes them.

        raises  ArtefactError when a chunk is missing or damaged, or cells are not those that were
                encoded for their places
        """
        store = self.store
        inside = self.places[self.rows(block)] % store.shard_samples
        for name, room in into.items():
            cells = store.read_shard(name, view, block, bits=name == "mask")
            # Straight to its place: without a mode, numpy makes a copy first.
            cells.take(inside, axis=0, out=room, mode="clip")
        store.require_right(view, block, inside, into)

    @property
    def cell_bytes(self) -> int:
        """Bytes of one cell in memory."""
        return sum(math.prod(self.shape(n)) * (1 if n == "mask" else 2) for n in self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one cell of an array as `read` gives it."""
        size = self.store.size
        return (size, -(-size // 8)) if name == "mask" else self.store.latent_shape

    def latents(self, arrays: Mapping[str, torch.Tensor], rows: np.ndarray) -> Latents:
        """Arrays [K, rows, …] of some rows of the split, as one."""
        store = self.store
        return Latents(
            sample_ids=store.samples["sample_id"].gather(self.places[rows]).to_list(),
            image_mean=arrays["image_mean"],
            image_std=arrays.get("image_std"),
            mask_mean=arrays["mask_mean"],
            mask_bits=arrays.get("mask"),
            size=store.size,
            scaling_factor=store.tokenizer["scaling_factor"],
            shift_factor=store.tokenizer["shift_factor"],
        )


def load_latents(
    store: LatentStore,
    split: str,
    *,
    views: int | None = None,
    masks: bool = True,
    std: bool = False,
    fold: int | None = None,
    rows: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Latents:
    """Read one split of a finished store into memory, some shards at a time.

    views    how many views from 0 on; None for all of the split. Evaluation reads one, the clean
    masks    whether the masks are read too; they are the larger part of the reading
    std      likewise the posterior's standard deviation, which noise alone needs
    fold     of the run that reads it; see `lmm.splits.rows_of_split`
    rows     those of the split to read; see `SplitReader`
    raises   as `SplitReader` and its `read` do
    """
    reader = SplitReader(store, split, masks=masks, std=std, fold=fold, rows=rows)
    there = store.eval_views if split == "test" else store.views
    count = there if views is None else min(views, there)
    every = len(reader.places)
    arrays = reader.empty(count, every)

    def read(shard: tuple[int, int]) -> None:
        view, block = shard
        rows = reader.rows(block)
        reader.read(view, block, {name: array[view, rows] for name, array in arrays.items()})

    shards = [(view, block) for view in range(count) for block in reader.blocks]
    with store.unchanged():
        for done, _ in enumerate(map_ahead(read, shards, store.reads_ahead), 1):
            if progress:
                progress(done, len(shards))
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return reader.latents(tensors, np.arange(every))


def images_at_a_time(device: torch.device) -> int:
    """How many images suit a device: a GPU wants many, a CPU is fastest with what fits its cache.

    A decoder's activations at full resolution are the largest thing in evaluation and prediction.
    """
    return {"cuda": 64, "cpu": 2}.get(device.type, 8)


def in_batches(
    function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, count: int
) -> Iterator[torch.Tensor]:
    """The function's results for some rows at a time, each computed in a batch of `count` rows.

    Kernels sum in another order in a batch of another size, and the last bits of a row then depend
    on how many came with it. The last batch is therefore filled up, with its last row again, and
    the result cut.

    function  (count, …) → (count, …), a row of the result from each row
    rows      (n, …)
    """
    for batch in rows.split(count):
        missing = batch[-1:].expand(count - len(batch), *batch.shape[1:])
        yield function(torch.cat([batch, missing]))[: len(batch)]
