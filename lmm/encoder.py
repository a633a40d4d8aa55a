"""The frozen encoder as prediction sees it: pixels in, the image latent that the LMM reads out."""

import torch

from lmm.latents import model_latent
from pipeline.tokenizer import Tokenizer


def image_latent(tokenizer: Tokenizer, pixels_pm1: torch.Tensor, precision: str) -> torch.Tensor:
    """Z_I = s · (μ − m), with μ in float16, as it lies in a store and as the LMM was trained on it.

    pixels_pm1  (B, 3, S, S) float32 in [-1, 1]
    precision   arithmetic of E: fp32, bf16 or fp16
    returns     (B, C, h, w) float32, scaled
    """
    mean = tokenizer.encode(pixels_pm1, precision)[0].half()
    finite = mean.isfinite().flatten(1).all(dim=1)
    if precision != "fp32" and not finite.all():
        # As in `encode`: half precision overflows on some images that full precision encodes well.
        again = tokenizer.encode(pixels_pm1, "fp32")[0].half()
        mean = torch.where(finite.view(-1, 1, 1, 1), mean, again)
    return model_latent(mean, tokenizer.scaling_factor, tokenizer.shift_factor)
