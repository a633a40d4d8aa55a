"""One optimiser step of any model under any loss, and all state that it changes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lmm.decoder import MaskDecoder
from lmm.latents import Batch, Latents
from lmm.losses import Loss, stack_levels
from lmm.model import predict_latents
from lmm.run.checkpoint import (
    load_training_state,
    named,
    part_of,
    training_state_of,
    weights_of,
)
from lmm.settings import TrainSettings
from lmm.student.distillation import LEARN_EVERY, Distillation
from pipeline.device import autocast

Forward = Callable[[Tensor], dict[str, Tensor]]  # z_image → Ẑ_M by level; `out` is the prediction


class Learner:
    """A model in training, with all that a step changes.

    model         z_image (B, C, h, w) → {level: (B, C, h, w)}, both scaled; `out` is what is scored
    loss          what is minimised
    settings      batch size, learning rate, epochs, arithmetic and seed are read from these
    teacher       the frozen decoder, by which epochs are compared
    distillation  the student that learns from the teacher as training goes on, or None
    forward       the model's forward in a step, where that is not the model itself
    steps         optimiser steps taken
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        settings: TrainSettings,
        teacher: MaskDecoder,
        distillation: Distillation | None = None,
        forward: Forward | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.settings = settings
        self.teacher = teacher
        self.distillation = distillation
        self.forward = forward or model
        # AdamW as the GMS authors use it, its update in one fused kernel.
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, fused=True)
        self.steps = 0

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; the parts of the loss that took part in it, detached."""
        settings = self.settings
        self.steps += 1
        with autocast(batch.z_image.device, settings.precision):
            z_mask_hat = self.forward(batch.z_image)
        parts = self.loss(z_mask_hat, batch, self.steps)
        if self.distillation and self.steps % (settings.seg_every * LEARN_EVERY) == 0:
            self.distillation.learn(stack_levels(z_mask_hat, settings.dice_levels), self.steps)
        self.optimiser.zero_grad()
        torch.autograd.backward(list(parts.values()))
        self.optimiser.step()
        return {part: loss.detach() for part, loss in parts.items()}

    @property
    def decoder_calls(self) -> int:
        """How often the frozen decoder has run."""
        return self.teacher.calls

    def masks(self, selection: Latents) -> tuple[Tensor, dict[str, float]]:
        """What it predicts of clean images, decoded by the teacher.

        returns  (n, H, W) bool; what a validation logs of them beside their scores: with a student,
                 the mean DSC between its masks and these
        """
        z_mask_hat = predict_latents(self.model, selection, self.settings.precision)
        masks = self.teacher.masks(z_mask_hat)
        agreement = None
        if self.distillation:
            agreement = self.distillation.decoder.agreement(z_mask_hat, masks)
        return masks, {} if agreement is None else {"student_agreement": agreement}

    def weights(self) -> dict[str, Tensor]:
        """What is kept of a chosen epoch, under flat names: the model's weights, the student's."""
        weights = named("model", weights_of(self.model))
        if self.distillation:
            weights |= named("student", weights_of(self.distillation.decoder.student))
        return weights

    def tensors(self) -> dict[str, Tensor]:
        """All that training goes on from, under flat names."""
        return {
            **training_state_of(self.model, self.optimiser),
            **(named("student", self.distillation.tensors()) if self.distillation else {}),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        load_training_state(self.model, self.optimiser, tensors)
        if self.distillation:
            self.distillation.load(part_of(tensors, "student"))


def compiled(model: nn.Module, levels: Sequence[str]) -> Forward:
    """A model's forward in kernels that torch generates at the first call.

    On CUDA it is captured, its gradient too, as graphs that are launched whole. A step's batches
    have one shape. Of other levels nothing is computed.
    """

    def forward(z_image: Tensor) -> dict[str, Tensor]:
        z_mask_hat = model(z_image)
        return {level: z_mask_hat[level] for level in levels}

    return torch.compile(forward, mode="reduce-overhead", dynamic=False)
