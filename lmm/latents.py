"""A split of a store in memory, and batches of it as the LMM reads them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.ahead import map_ahead
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore

POSTERIORS = ("mean", "sample", "gms")
_EXPONENT = np.uint16(0x7C00)  # bits of a float16


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
    image_std    likewise, or None for a deterministic tokenizer
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
        return self.image_mean.shape[0]

    @property
    def device(self) -> torch.device:
        return self.image_mean.device

    def batch(
        self,
        view: torch.Tensor,
        sample: torch.Tensor,
        posterior: str = "mean",
        noise: torch.Tensor | None = None,
    ) -> Batch:
        """The cells (view[i], sample[i]) as one batch, without a loop over them.

        view, sample  (B,) int64 on the split's device
        posterior     mean: z = s · (mean − m). sample: z = s · (mean + std · noise − m).
                      gms: z = s · (mean − m) + std · noise, with std not scaled, which is what the
                      GMS authors' code feeds and 1/s times too wide
        noise         (B, C, h, w) float32, standard normal; None adds none under any posterior
        """
        mean = self.image_mean[view, sample].float()
        if noise is not None and posterior != "mean":
            assert self.image_std is not None
            spread = self.image_std[view, sample].float() * noise
            mean = mean + (spread if posterior == "sample" else spread / self.scaling_factor)
        return Batch(
            z_image=model_latent(mean, self.scaling_factor, self.shift_factor),
            z_mask=model_latent(
                self.mask_mean[view, sample], self.scaling_factor, self.shift_factor
            ),
            mask=None if self.mask_bits is None else self.unpack(self.mask_bits[view, sample]),
        )

    def unpack(self, bits: torch.Tensor) -> torch.Tensor:
        """Masks from packed bits: (…, H, ⌈W/8⌉) uint8 → (…, H, W) bool."""
        places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
        pixels = (bits.unsqueeze(-1) >> places) & 1
        return pixels.flatten(-2)[..., : self.size].bool()


def load_latents(
    store: LatentStore,
    split: str,
    *,
    views: int | None = None,
    masks: bool = True,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Latents:
    """Read one split of a finished store into memory, some shards at a time in threads.

    Checked are: that every cell has the key it should have, the CRC-32C of every chunk, and that
    every latent is finite. The checksums of cells, which tell one cell from another, are for
    `verify`.

    views    how many views from 0 on; None for all. Evaluation reads one, the clean images
    masks    whether the masks are read too; they are the larger part of the reading
    raises   ArtefactError when the store is not finished, a chunk is missing, damaged or not
             finite; UsageError when the split has no sample
    """
    store.require_complete()
    places = np.flatnonzero((store.samples["split"] == split).fill_null(False).to_numpy())
    if not places.size:
        present = sorted(store.samples["split"].drop_nulls().unique())
        raise UsageError(
            f"{store.url} has no sample in split {split!r}, only in {', '.join(present)}",
            "choose another split, or ingest with --val-fraction and encode again: "
            "changing splits encodes nothing",
        )
    count = store.views if views is None else min(views, store.views)
    names = [*store.latent_arrays, *(["mask"] if masks else [])]
    arrays = {name: _allocate(store, name, count, len(places)) for name in names}
    blocks = np.unique(places // store.shard_samples).tolist()
    shards = [(view, block) for view in range(count) for block in blocks]
    reads = map_ahead(lambda shard: _read_shard(store, places, arrays, *shard), shards)
    for done, _ in enumerate(reads, 1):
        if progress:
            progress(done, len(shards))
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return Latents(
        sample_ids=store.samples["sample_id"].gather(places).to_list(),
        image_mean=tensors["image_mean"],
        image_std=tensors.get("image_std"),
        mask_mean=tensors["mask_mean"],
        mask_bits=tensors.get("mask"),
        size=store.size,
        scaling_factor=store.tokenizer["scaling_factor"],
        shift_factor=store.tokenizer["shift_factor"],
    )


def _allocate(store: LatentStore, name: str, views: int, samples: int) -> np.ndarray:
    if name == "mask":
        return np.empty((views, samples, store.size, -(-store.size // 8)), dtype=np.uint8)
    return np.empty((views, samples, *store.latent_shape), dtype=np.float16)


def _read_shard(
    store: LatentStore, places: np.ndarray, arrays: dict[str, np.ndarray], view: int, block: int
) -> None:
    """The cells of one shard that lie at `places`, into theirs in the arrays."""
    rows = store.rows_of(block)
    here = slice(*np.searchsorted(places, [rows.start, rows.stop]))
    for name, array in arrays.items():
        cells, target = store.read_shard(name, view, block), array[view, here]
        if name == "mask":
            cells = _packed(cells)
        # With the default mode, numpy would write to a copy first.
        cells.take(places[here] - rows.start, axis=0, out=target, mode="clip")
        if name != "mask":
            _require_finite(store, name, view, block, target)


def _packed(mask: np.ndarray) -> np.ndarray:
    """Masks as bits, rows padded to whole bytes: (n, H, W) bool → (n, H, ⌈W/8⌉) uint8."""
    count, height, width = mask.shape
    # Long rows pack several times as fast, and where no row needs padding they are the same.
    rows = mask if width % 8 else mask.reshape(count, -1)
    return np.packbits(rows, axis=-1).reshape(count, height, -1)


def _require_finite(
    store: LatentStore, name: str, view: int, block: int, cells: np.ndarray
) -> None:
    # Infinities and NaN are the numbers whose exponent is all ones; numpy.isfinite converts each
    # float16 first, in twenty times the time.
    if ((cells.view(np.uint16) & _EXPONENT) == _EXPONENT).any():
        raise ArtefactError(
            f"{store.url}: {name} of view {view}, samples {store.rows_of(block).start} and on, "
            "holds values that are not finite",
            "encode the data set into a new store",
        )
