"""The student: a small network that decodes mask latents nearly as the frozen decoder does."""

import torch
from torch import Tensor, nn

from lmm.decoder import THRESHOLD
from lmm.metrics import score
from pipeline.device import autocast

COMPARED_PX = 100


class MaskStudent(nn.Module):
    """Ẑ_M → grey mask, all of it computed at the latent's resolution, as logits.

    Two residual blocks, then one channel for each pixel of a latent's cell, shuffled to its place.

    latent_channels  C of the tokenizer's latents
    downsampling     H / h of the tokenizer
    width            channels within
    """

    def __init__(self, latent_channels: int, downsampling: int, width: int = 32) -> None:
        super().__init__()
        self.downsampling = downsampling
        self.stem = _conv(latent_channels, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), _conv(width, width), nn.SiLU(), _conv(width, width))
            for _ in range(2)
        )
        self.head = nn.Sequential(nn.SiLU(), _conv(width, downsampling**2))
        # What the convolutions of CPUs and tensor cores want.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z_mask_hat: Tensor) -> Tensor:
        """Logits of M̂: (B, C, h, w) float, scaled → (B, H, W)."""
        x = self.stem(z_mask_hat)
        for block in self.blocks:
            x = x + block(x)
        # What pixel_shuffle does, without its detour from the memory format of the convolutions.
        cells = self.head(x).unflatten(1, (self.downsampling, self.downsampling))
        logits: Tensor = cells.permute(0, 3, 1, 4, 2).flatten(3, 4).flatten(1, 2)
        return logits


def _conv(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel_size=3, padding=1)


class StudentDecoder:
    """A student in the frozen decoder's place under the Dice loss."""

    def __init__(self, student: MaskStudent, precision: str) -> None:
        self.student = student
        self.precision = precision
        # All masks of a step of batch 8 on a CPU; a GPU has memory for many more.
        self.at_a_time = 32 if next(student.parameters()).is_cpu else 256

    def __call__(self, z_mask_hat: Tensor) -> Tensor:
        """Grey masks, differentiable with respect to the latents.

        z_mask_hat  (B, C, h, w), scaled
        returns     (B, H, W) float32 in [0, 1]
        """
        return self.logits(z_mask_hat).sigmoid()

    def logits(self, z_mask_hat: Tensor) -> Tensor:
        """What M̂ is the sigmoid of: (B, H, W) float32."""
        with autocast(z_mask_hat.device, self.precision):
            logits: Tensor = self.student(z_mask_hat.contiguous(memory_format=torch.channels_last))
        return logits.float()

    @torch.inference_mode()
    def masks(self, z_mask_hat: Tensor) -> Tensor:
        """Binary masks: (n, C, h, w) → (n, H, W) bool."""
        return self(z_mask_hat) > THRESHOLD

    def agreement(self, z_mask_hat: Tensor, masks: Tensor) -> float | None:
        """Mean DSC between its masks and the frozen decoder's, which are given.

        Only masks with at least `COMPARED_PX` pixels are compared: of a handful of pixels that
        barely pass the threshold, DSC says nothing. None where there is no such mask.

        z_mask_hat  (n, C, h, w), scaled
        masks       (n, H, W) bool
        """
        large = masks.sum(dim=(1, 2)) >= COMPARED_PX
        if not large.any():
            return None
        return float(score(self.masks(z_mask_hat[large]), masks[large])["dsc"].mean())
