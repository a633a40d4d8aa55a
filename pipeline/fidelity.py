"""What a tokenizer keeps of an image, as one number: the peak signal-to-noise ratio."""

import torch


def psnr_db(output_pm1: torch.Tensor, truth_pm1: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of every image: 10 · log₁₀(peak² / mean squared error).

    The peak of pixels in [-1, 1] is 2; the same number comes of [0, 1] with a peak of 1.

    output_pm1, truth_pm1  (N, 3, H, W) float32 in [-1, 1]
    returns                (N,) float32 in dB; infinite where output and truth are equal
    """
    error = (output_pm1 - truth_pm1).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error)
