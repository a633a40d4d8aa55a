"""What training minimises: L_lm between mask latents, L_seg between masks, or both.

Source: Huo et al., Generative Medical Segmentation, AAAI 2025, section 3. Every loss is computed in
float32, also under autocast: sums over 50,000 pixels do not fit a half-precision mantissa.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_KINDS = ("lm", "seg", "compound")
LEVELS = ("level2", "level1", "out")  # supervised levels of LatentMappingModel; level3 is not
DICE_SMOOTHING = 1e-5


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
    check_same_shape("z_mask_hat", z_mask_hat, "z_mask", z_mask)
    return F.mse_loss(z_mask_hat.float(), z_mask.float())


def dice_loss(grey: Tensor, mask: Tensor) -> Tensor:
    """L_seg of one level: 1 − (2·Σ(M·M̂) + ε) / (ΣM + ΣM̂ + ε) per image, mean over the batch.

    ε = 1e-5 makes an empty prediction of an empty mask cost 0; it is what MONAI's DiceLoss adds.

    grey     (B, H, W) float in [0, 1]: M̂, not thresholded
    mask     (B, H, W) bool, uint8 or float, values 0 and 1: M
    returns  float32 scalar in [0, 1]
    raises   ValueError when the shapes differ
    """
    check_same_shape("grey", grey, "mask", mask)
    prediction, truth = grey.float().flatten(1), mask.float().flatten(1)
    overlap = (prediction * truth).sum(dim=1)
    area = prediction.sum(dim=1) + truth.sum(dim=1)
    return (1 - (2 * overlap + DICE_SMOOTHING) / (area + DICE_SMOOTHING)).mean()


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    # Broadcasting would turn a forgotten dimension into a plausible number.
    if tensor.shape != other.shape:
        shapes = f"{tuple(tensor.shape)} and {tuple(other.shape)}"
        raise ValueError(f"{name} and {other_name} differ in shape: {shapes}")
