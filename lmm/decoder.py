"""The frozen decoder as training and evaluation see it: scaled mask latent in, grey mask out."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lmm.latents import images_at_a_time, in_batches, model_latent, raw_latent
from pipeline.pixels import to_grey
from pipeline.tokenizer import Tokenizer

THRESHOLD = 0.5

Grey = NDArray[np.float32]


class Decoder(Protocol):
    """What the Dice loss decodes with: the frozen decoder, or a student of it.

    at_a_time  how many latents it takes at a time under gradients
    """

    at_a_time: int

    def __call__(self, z_mask_hat: torch.Tensor) -> torch.Tensor: ...


class MaskDecoder:
    """D of a tokenizer, averaged over channels; `calls` counts how often D ran."""

    def __init__(self, tokenizer: Tokenizer, precision: str = "fp32") -> None:
        self.tokenizer = tokenizer
        self.precision = precision
        self.calls = 0
        self.at_a_time = images_at_a_time(tokenizer.device)

    def scaled(self, latent: torch.Tensor) -> torch.Tensor:
        """Latents of its tokenizer as the LMM reads them; see `lmm.latents.model_latent`."""
        return model_latent(latent, self.tokenizer.scaling_factor, self.tokenizer.shift_factor)

    def __call__(self, z_mask_hat: torch.Tensor) -> torch.Tensor:
        """Grey masks, differentiable with respect to the latents.

        z_mask_hat  (B, C, h, w), scaled
        returns     (B, H, W) float32 in [0, 1]
        """
        self.calls += 1
        tokenizer = self.tokenizer
        latent = raw_latent(z_mask_hat, tokenizer.scaling_factor, tokenizer.shift_factor)
        return to_grey(tokenizer.decode(latent, self.precision))

    def greys(
        self, z_mask_hat: torch.Tensor, *, of_one_shape: bool = False
    ) -> Iterator[torch.Tensor]:
        """Grey masks without gradients, in batches that fit: (n, C, h, w) → (≤ n, H, W) each.

        of_one_shape  whether the last batch is filled up, so that a mask does not depend on how
                      many come with it; see `lmm.latents.in_batches`
        """
        for batch in z_mask_hat.split(self.at_a_time):
            with torch.inference_mode():
                grey = next(in_batches(self, batch, self.at_a_time if of_one_shape else len(batch)))
            yield grey

    def masks(self, z_mask_hat: torch.Tensor) -> torch.Tensor:
        """Binary masks: (n, C, h, w) → (n, H, W) bool."""
        return torch.cat([grey > THRESHOLD for grey in self.greys(z_mask_hat)])


def at_size(grey: Grey, height: int, width: int) -> Grey:
    """A grey map at another size: bilinear, antialiased where it shrinks.

    grey     (S, S) float32 in [0, 1]; to be compared with the threshold afterwards, so that a
             mask's contour has no stairs of the map's pixels
    returns  (height, width) float32 in [0, 1]
    """
    # The filter by which the image was resized, so that both sides agree on where pixels lie.
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)
