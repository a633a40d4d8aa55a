"""What training minimises: L_lm between mask latents, L_seg between masks, or both.

Source: Huo et al., Generative Medical Segmentation, AAAI 2025, section 3. Every loss is computed in
float32, also under autocast: sums over 50,000 pixels do not fit a half-precision mantissa.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lmm.decoder import Decoder
from lmm.latents import Batch
from lmm.settings import LEVELS, LOSSES, TrainSettings
from pipeline.device import is_out_of_memory

DICE_SMOOTHING = 1e-5
EMPTY_MARGIN = 1e-4


class Loss(Protocol):
    """What a learner minimises: the sum of named parts."""

    def __call__(
        self, z_mask_hat: Mapping[str, Tensor], batch: Batch, step: int
    ) -> dict[str, Tensor]:
        """The parts that take part in a step, float32 scalars that lead back to the levels.

        z_mask_hat  what the model makes of the batch: {level: (B, C, h, w)}, scaled
        step        number of the step, from 1
        """


def loss_of(settings: TrainSettings, decoder: Decoder) -> Loss:
    """The loss that settings ask for; `decoder` makes masks of latents under the Dice loss.

    Fewer levels and fewer steps with a Dice term leave its share of the sum as it is on average:
    the term is multiplied by steps from one to the next, and by all levels over those decoded.
    """
    dice_weight = settings.seg_every * len(LEVELS) / len(settings.dice_levels)

    def latent(z_mask_hat: Mapping[str, Tensor], batch: Batch, step: int) -> Tensor | None:
        return lm_loss(z_mask_hat, batch.z_mask)

    def dice(z_mask_hat: Mapping[str, Tensor], batch: Batch, step: int) -> Tensor | None:
        if step % settings.seg_every:
            return None
        assert batch.mask is not None
        levels = stack_levels(z_mask_hat, settings.dice_levels)
        return dice_weight * seg_loss(decoder, levels, batch.mask)

    parts = {"lm": latent, "seg": dice}

    def loss(z_mask_hat: Mapping[str, Tensor], batch: Batch, step: int) -> dict[str, Tensor]:
        found = {name: parts[name](z_mask_hat, batch, step) for name in LOSSES[settings.loss]}
        return {name: part for name, part in found.items() if part is not None}

    return loss


def stack_levels(z_mask_hat: Mapping[str, Tensor], levels: Sequence[str]) -> Tensor:
    """Some levels of a model as one tensor: {level: (B, C, h, w)} → (L, B, C, h, w) float32."""
    return torch.stack([z_mask_hat[level] for level in levels]).float()


def lm_loss(z_mask_hat: Mapping[str, Tensor], z_mask: Tensor) -> Tensor:
    """L_lm, summed over the supervised levels.

    z_mask_hat  {level: (B, C, h, w)} float, scaled, as LatentMappingModel returns it
    z_mask      (B, C, h, w) float, scaled
    returns     float32 scalar
    """
    return torch.stack([latent_loss(z_mask_hat[level], z_mask) for level in LEVELS]).sum()


def latent_loss(z_mask_hat: Tensor, z_mask: Tensor) -> Tensor:
    """L_lm of one level: mean of (Ẑ_M − Z_M)² over all elements.

    z_mask_hat, z_mask  (B, C, h, w) float, scaled
    returns             float32 scalar
    raises              ValueError when the shapes differ
    """
    _check_same_shape("z_mask_hat", z_mask_hat, "z_mask", z_mask)
    return F.mse_loss(z_mask_hat.float(), z_mask.float())


def dice_loss(grey: Tensor, mask: Tensor) -> Tensor:
    """L_seg of one level: the mean over the batch of one term an image.

    Of an image with a lesion: 1 − (2·Σ(M·M̂) + ε) / (ΣM + ΣM̂ + ε), with ε = 1e-5 as MONAI's
    DiceLoss adds it.

    Of an image whose mask is empty: the cross-entropy of M̂ with it, the mean over pixels of
    −log(1 − M̂ / (1 + δ)), which is 0 where nothing is predicted. Its Dice term would be near 1 and
    flat: ΣM̂ of a grey map stays far above ε, so that taking a false alarm away would earn nothing.
    δ = 1e-4 keeps the slope, 1 / (1 + δ − M̂), within 10,000 where a decoder's M̂ is 1; towards the
    logit of a sigmoid it is nearly M̂ itself.

    grey     (B, H, W) float in [0, 1]: M̂, not thresholded
    mask     (B, H, W) bool, uint8 or float, values 0 and 1: M
    returns  float32 scalar; in [0, 1] where no mask is empty
    raises   ValueError when the shapes differ
    """
    _check_same_shape("grey", grey, "mask", mask)
    prediction, truth = grey.float().flatten(1), mask.float().flatten(1)
    overlap, lesion = (prediction * truth).sum(dim=1), truth.sum(dim=1)
    area = prediction.sum(dim=1) + lesion
    dice = 1 - (2 * overlap + DICE_SMOOTHING) / (area + DICE_SMOOTHING)
    # Saves a logarithm a pixel in most batches. To ask a GPU would make the host wait for it.
    if lesion.is_cpu and lesion.all():
        return dice.mean()
    alarm = -torch.log1p(prediction / -(1 + EMPTY_MARGIN)).mean(dim=1)
    return torch.where(lesion > 0, dice, alarm).mean()


def seg_loss(decoder: Decoder, z_mask_hat: Tensor, mask: Tensor) -> Tensor:
    """L_seg, summed over levels, whose gradient was taken slice by slice; see `seg_gradient`."""
    loss, gradient = seg_gradient(decoder, z_mask_hat, mask)
    # Zero in value, and the gradient in gradient.
    return loss + ((z_mask_hat - z_mask_hat.detach()) * gradient).sum()


def seg_gradient(decoder: Decoder, z_mask_hat: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """L_seg, summed over levels, and its gradient with respect to the latents.

    The loss is a sum over images, so the latents are decoded a few at a time, and what a decoder
    keeps for its gradient is freed before the next: memory does not grow with levels and batch, and
    the gradient is the same. Frozen weights take no gradient. On a device short of memory fewer are
    decoded at a time from then on.

    z_mask_hat  (L, B, C, h, w) float32, scaled
    mask        (B, H, W) bool
    returns     float32 scalar; (L, B, C, h, w) float32
    """
    flat = z_mask_hat.detach().flatten(0, 1)
    masks = mask.repeat(len(z_mask_hat), 1, 1)
    loss = torch.zeros((), device=flat.device)
    gradients: list[Tensor] = []
    start = 0
    while start < len(flat):
        rows = slice(start, start + decoder.at_a_time)
        some = flat[rows].requires_grad_()
        try:
            part = dice_loss(decoder(some), masks[rows]) * (len(some) / len(mask))
            gradients += torch.autograd.grad(part, some)
        except RuntimeError as error:
            if not is_out_of_memory(error) or decoder.at_a_time == 1:
                raise
            decoder.at_a_time //= 2
            continue
        loss = loss + part.detach()
        start += len(some)
    return loss, torch.cat(gradients).unflatten(0, z_mask_hat.shape[:2])


def _check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    # Broadcasting would turn a forgotten dimension into a plausible number.
    if tensor.shape != other.shape:
        shapes = f"{tuple(tensor.shape)} and {tuple(other.shape)}"
        raise ValueError(f"{name} and {other_name} differ in shape: {shapes}")
