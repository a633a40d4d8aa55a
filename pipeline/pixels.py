"""Pixels between bytes, [0, 1], [-1, 1] and masks: every convention of a tokenizer's two ends."""

import torch
from torch import Tensor


def to_01(image_u8: Tensor) -> Tensor:
    """Bytes as shares of the brightest: uint8 0…255 → float32 in [0, 1], the same shape."""
    return image_u8.float() / 255.0


def to_pm1(image_u8: Tensor) -> Tensor:
    """Bytes as E reads them: uint8 0…255 → float32 in [-1, 1], the same shape."""
    return pm1_of(to_01(image_u8))


def pm1_of(pixels_01: Tensor) -> Tensor:
    """Pixels in [0, 1] as E reads them: 2 · x − 1, float in [-1, 1], the same shape."""
    return pixels_01 * 2.0 - 1.0


def to_u8(pixels_pm1: Tensor) -> Tensor:
    """The nearest bytes to pixels around [-1, 1], the same shape; what is outside is clamped."""
    return ((pixels_pm1 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def mask_pixels(mask: Tensor) -> Tensor:
    """A mask as E reads it: (…, H, W) bool → (…, 3, H, W) float32, −1 outside and 1 inside."""
    return pm1_of(mask.float()).unsqueeze(-3).expand(*mask.shape[:-2], 3, -1, -1)


def to_grey(decoded: Tensor) -> Tensor:
    """D's pixels as one grey map: mean over channels, [-1, 1] → [0, 1], clamped.

    The clamp passes no gradient from a pixel outside [0, 1], as in the GMS authors' code.

    decoded  (..., channels, H, W) float, around [-1, 1]
    returns  (..., H, W) float32 in [0, 1]; a mask is to_grey(decoded) > 0.5
    """
    return ((decoded.float().mean(dim=-3) + 1) / 2).clamp(0, 1)
