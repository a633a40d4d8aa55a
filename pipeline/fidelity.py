"""What a tokenizer keeps of images and masks: PSNR and DSC of what comes back from D."""

import torch

from pipeline.pixels import to_grey
from pipeline.tokenizer import Tokenizer


@torch.inference_mode()
def decoded_pm1(tokenizer: Tokenizer, latent: torch.Tensor) -> torch.Tensor:
    """D's pixels in the range that pixels have: (N, C, h, w) float32, raw → (N, 3, H, W)."""
    return tokenizer.decode(latent).clamp(-1, 1)


def psnr_db(output_pm1: torch.Tensor, truth_pm1: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of every image: 10 · log₁₀(peak² / mean squared error).

    The peak of pixels in [-1, 1] is 2; the same number comes of [0, 1] with a peak of 1.

    output_pm1, truth_pm1  (N, 3, H, W) float32 in [-1, 1]
    returns                (N,) float32 in dB; infinite where output and truth are equal
    """
    error = (output_pm1 - truth_pm1).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error)


def mask_dsc(output_pm1: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """DSC of every decoded mask, its grey map thresholded at 0.5: 2|p∩t| / (|p|+|t|).

    output_pm1  (N, 3, H, W) float32 in [-1, 1], as D gives it
    mask        (N, H, W) bool
    returns     (N,) float64 in [0, 1]; 1 where both are empty
    """
    found = to_grey(output_pm1) > 0.5
    both = (found & mask).sum((1, 2))
    total = found.sum((1, 2)) + mask.sum((1, 2))
    return torch.where(total == 0, 1.0, 2 * both.double() / total.clamp(min=1))
