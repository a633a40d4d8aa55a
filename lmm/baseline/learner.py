"""One optimiser step of a network in pixels, under the loss that such networks are trained with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmm.baseline.network import grey_maps, logits_of
from lmm.baseline.pixels import PixelBatch, Pixels
from lmm.baseline.settings import BaselineSettings
from lmm.decoder import THRESHOLD
from lmm.losses import DICE_SMOOTHING
from lmm.run.checkpoint import load_training_state, named, training_state_of, weights_of


class PixelLearner:
    """A network in training, with all that a step changes; to `lmm.loop.fit` as any learner.

    model     (B, 3, S, S) in [-1, 1] → (B, 1, S, S) logits
    settings  learning rate, arithmetic, epochs and so on are read from these
    steps     optimiser steps taken
    """

    decoder_calls = 0  # there is none

    def __init__(self, model: nn.Module, settings: BaselineSettings) -> None:
        self.model = model
        self.settings = settings
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, fused=True)
        self.steps = 0

    def step(self, batch: PixelBatch) -> dict[str, Tensor]:
        """One optimiser step; the parts of its loss, detached."""
        self.steps += 1
        self.model.train()
        logits = logits_of(self.model, batch.image_pm1, self.settings.precision)
        parts = dice_and_cross_entropy(logits, batch.mask)
        self.optimiser.zero_grad()
        torch.autograd.backward(list(parts.values()))
        self.optimiser.step()
        return {part: loss.detach() for part, loss in parts.items()}

    def masks(self, selection: Pixels) -> tuple[Tensor, dict[str, float]]:
        """What it predicts of clean images, (n, S, S) bool; nothing else to log."""
        greys = grey_maps(self.model, selection.images_u8, self.settings.precision)
        return torch.cat([grey > THRESHOLD for grey in greys]), {}

    def weights(self) -> dict[str, Tensor]:
        """What is kept of a chosen epoch, under flat names."""
        return named("model", weights_of(self.model))

    def tensors(self) -> dict[str, Tensor]:
        """All that training goes on from, under flat names."""
        return training_state_of(self.model, self.optimiser)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        load_training_state(self.model, self.optimiser, tensors)


def dice_and_cross_entropy(logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The two parts of the loss of nnU-Net, in float32; their sum is minimised.

    dice  mean over images of 1 − (2·Σ(M·P) + ε) / (ΣM + ΣP + ε), P = sigmoid(logits), ε = 1e-5
    ce    mean over pixels of the cross-entropy of P with M

    logits   (B, H, W) float
    mask     (B, H, W) bool: M
    source   Isensee et al., nnU-Net, Nature Methods 2021; equals MONAI's DiceCELoss(sigmoid=True)
    """
    truth, p = mask.float(), logits.float().sigmoid()
    overlap = (p * truth).flatten(1).sum(dim=1)
    area = (p + truth).flatten(1).sum(dim=1)
    dice = 1 - (2 * overlap + DICE_SMOOTHING) / (area + DICE_SMOOTHING)
    ce = F.binary_cross_entropy_with_logits(logits.float(), truth)
    return {"dice": dice.mean(), "ce": ce}
