"""One optimiser step: the LMM's prediction, its losses, and their gradients in bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from lmm.checkpoint import (
    load_optimiser_state,
    load_weights,
    named,
    optimiser_state_of,
    part_of,
    weights_of,
)
from lmm.decoder import Decoder, MaskDecoder
from lmm.latents import Batch
from lmm.losses import LEVELS, dice_loss, lm_loss
from lmm.model import LatentMappingModel
from lmm.settings import TrainSettings
from lmm.student.distillation import LEARN_EVERY, Distillation
from pipeline.device import autocast
from pipeline.encode.cells import is_out_of_memory


class Learner:
    """An LMM in training, with all that a step changes.

    teacher       the frozen decoder
    distillation  the student in its place under the Dice loss, or None
    steps         optimiser steps taken
    """

    def __init__(
        self,
        model: LatentMappingModel,
        settings: TrainSettings,
        teacher: MaskDecoder,
        distillation: Distillation | None = None,
    ) -> None:
        self.model = model
        self.supervised = supervised(model, settings)
        self.settings = settings
        self.teacher = teacher
        self.distillation = distillation
        # AdamW as the GMS authors use it, its update in one fused kernel.
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, fused=True)
        self.steps = 0

    @property
    def decoder(self) -> Decoder:
        """What the Dice loss decodes with."""
        return self.distillation.decoder if self.distillation else self.teacher

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; the parts of the loss that took part in it, detached."""
        settings = self.settings
        self.steps += 1
        with autocast(batch.z_image.device, settings.precision):
            z_mask_hat = self.supervised(batch.z_image)
        parts: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        gradients: list[Tensor | None] = []
        if settings.loss != "seg":
            parts["lm"] = lm_loss(z_mask_hat, batch.z_mask)
            outputs.append(parts["lm"])
            gradients.append(None)
        if settings.has_dice and self.steps % settings.seg_every == 0:
            assert batch.mask is not None
            levels = torch.stack([z_mask_hat[level] for level in settings.dice_levels]).float()
            parts["seg"], gradient = seg_gradient(self.decoder, levels, batch.mask)
            outputs.append(levels)
            gradients.append(gradient)
            if self.distillation and (self.steps // settings.seg_every) % LEARN_EVERY == 0:
                self.distillation.learn(levels, self.steps)
        self.optimiser.zero_grad()
        torch.autograd.backward(outputs, gradients)
        self.optimiser.step()
        return {part: loss.detach() for part, loss in parts.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that training goes on from, under flat names."""
        return {
            **named("model", weights_of(self.model)),
            **named("optimiser", optimiser_state_of(self.optimiser)),
            **(named("student", self.distillation.tensors()) if self.distillation else {}),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        load_weights(self.model, part_of(tensors, "model"))
        load_optimiser_state(self.optimiser, part_of(tensors, "optimiser"))
        if self.distillation:
            self.distillation.load(part_of(tensors, "student"))


def supervised(
    model: LatentMappingModel, settings: TrainSettings
) -> Callable[[Tensor], dict[str, Tensor]]:
    """The LMM's forward as a step needs it: z_image → Ẑ_M of the levels that the loss takes.

    With `settings.compile` torch generates kernels for it at the first call, and on CUDA captures
    it, its gradient too, as graphs that are launched whole. A step's batches have one shape.
    """
    levels = settings.dice_levels if settings.loss == "seg" else LEVELS

    def forward(z_image: Tensor) -> dict[str, Tensor]:
        z_mask_hat = model(z_image)
        return {level: z_mask_hat[level] for level in levels}

    if not settings.compile:
        return forward
    return torch.compile(forward, mode="reduce-overhead", dynamic=False)


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
