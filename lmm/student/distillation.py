"""Distillation: a student learns from the frozen decoder what mask latents decode to.

Before training it learns from the store's own mask latents, once for a store. While an LMM trains
it learns from that LMM's predictions, because those are what it has to decode.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lmm.decoder import MaskDecoder
from lmm.run.checkpoint import load_training_state, training_state_of
from lmm.student.network import MaskStudent, StudentDecoder
from pipeline.seeds import seed_at
from pipeline.telling import Progress

# A lesson is one step of the student's own optimiser.
LESSON_PAIRS = 24
FIRST_LR = 3e-3

# While an LMM trains: how often, on how many of the latest predictions, and how fast.
LEARN_EVERY = 64
LESSONS_AT_A_TIME = 8
REMEMBERED = 256
LATER_LR = 1e-3


class Distillation:
    """A student and what it remembers of the frozen decoder's answers.

    decoder      the student in the frozen decoder's place
    z_mask_hat   (n, C, h, w) float16, scaled: latents that the frozen decoder has decoded
    grey         (n, H, W) uint8: its answers, 255 for 1
    origin       what a run says of the student that it began with; None for a new one
    """

    def __init__(
        self,
        student: MaskStudent,
        teacher: MaskDecoder,
        lr: float,
        seed: int,
        origin: dict[str, str] | None = None,
    ) -> None:
        self.decoder = StudentDecoder(student, teacher.precision)
        self.teacher = teacher
        self.seed = seed
        self.origin = origin
        self.optimiser = torch.optim.AdamW(student.parameters(), lr=lr, fused=True)
        device = teacher.tokenizer.device
        self.z_mask_hat = torch.empty(0, dtype=torch.float16, device=device)
        self.grey = torch.empty(0, dtype=torch.uint8, device=device)

    def remember(self, z_mask_hat: Tensor, at_most: int) -> None:
        """Ask the frozen decoder about some latents; keep the latest answers."""
        z_mask_hat = z_mask_hat.detach().half()
        greys = [(grey * 255).round().byte() for grey in self.teacher.greys(z_mask_hat.float())]
        self.z_mask_hat = torch.cat([self.z_mask_hat, z_mask_hat])[-at_most:]
        self.grey = torch.cat([self.grey, *greys])[-at_most:]

    def lesson(self, number: int) -> Tensor:
        """One step on pairs drawn by (seed, number): cross-entropy with the decoder's grey."""
        draw = torch.Generator().manual_seed(seed_at(self.seed, number))
        rows = torch.randint(len(self.grey), (LESSON_PAIRS,), generator=draw).to(self.grey.device)
        logits = self.decoder.logits(self.z_mask_hat[rows].float())
        loss = F.binary_cross_entropy_with_logits(logits, self.grey[rows].float() / 255)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()

    def learn(self, z_mask_hat: Tensor, step: int) -> None:
        """What the student does every `LEARN_EVERY` steps of an LMM, with its latest predictions.

        z_mask_hat  (L, B, C, h, w), scaled: of each sample one level is decoded, in turn
        """
        levels, samples = z_mask_hat.shape[:2]
        sample = torch.arange(samples, device=z_mask_hat.device)
        self.remember(z_mask_hat[sample % levels, sample], REMEMBERED)
        for lesson in range(LESSONS_AT_A_TIME):
            self.lesson(step * LESSONS_AT_A_TIME + lesson)

    def tensors(self) -> dict[str, Tensor]:
        """All of its state, under flat names."""
        return {
            **training_state_of(self.decoder.student, self.optimiser, "weights"),
            "z_mask_hat": self.z_mask_hat,
            "grey": self.grey,
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        load_training_state(self.decoder.student, self.optimiser, tensors, "weights")
        self.z_mask_hat = tensors["z_mask_hat"].to(self.z_mask_hat.device)
        self.grey = tensors["grey"].to(self.grey.device)


def synthetic_latents(z_mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Latents as an LMM in training gives them: true ones mixed, blurred and disturbed.

    An LMM that is unsure predicts the mean of the latents it holds possible.

    z_mask   (n, C, h, w) float32, scaled: true ones
    returns  (count, C, h, w)
    """
    n, shape = len(z_mask), z_mask.shape[1:]
    rows = torch.randint(n, (count, 4), generator=generator)
    # Exponentials to a power, normalised: from one latent alone to an even mixture of four.
    power = torch.rand(count, 1, generator=generator) * 6
    weight = torch.empty(count, 4).exponential_(generator=generator) ** power
    weight = (weight / weight.sum(dim=1, keepdim=True)).to(z_mask)
    mixed = torch.einsum("ck,ckdhw->cdhw", weight, z_mask[rows.to(z_mask.device)])
    blurs = torch.randint(4, (count,), generator=generator).to(z_mask.device)
    blurred = mixed
    for times in range(1, 4):
        blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        mixed = torch.where((blurs >= times).view(-1, 1, 1, 1), blurred, mixed)
    noise = torch.randn(count, *shape, generator=generator).to(z_mask)
    spread = torch.rand(count, 1, 1, 1, generator=generator).to(z_mask) * 0.3
    return mixed + noise * spread * z_mask.std()


def distil(
    teacher: MaskDecoder,
    z_mask: Tensor,
    pairs: int,
    lessons: int,
    progress: Progress | None = None,
) -> Distillation:
    """A new student, taught on latents made from true ones; z_mask (n, C, h, w), scaled."""
    torch.manual_seed(0)
    tokenizer = teacher.tokenizer
    student = MaskStudent(tokenizer.latent_channels, tokenizer.downsampling).to(tokenizer.device)
    distillation = Distillation(student, teacher, FIRST_LR, seed=0)
    made = synthetic_latents(z_mask, pairs, torch.Generator().manual_seed(0))
    for some in made.split(32):
        distillation.remember(some, pairs)
        if progress:
            progress(len(distillation.grey), pairs + lessons)
    for number in range(lessons):
        share = (number + 1) / lessons
        rate = FIRST_LR * min(1, (number + 1) / 20) * (1 + math.cos(math.pi * share)) / 2
        for group in distillation.optimiser.param_groups:
            group["lr"] = rate
        distillation.lesson(number)
        if progress:
            progress(pairs + number + 1, pairs + lessons)
    return distillation
