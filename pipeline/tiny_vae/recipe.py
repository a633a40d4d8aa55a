"""The recipe of the embedded tokenizer `tiny-vae`: train it, export it, measure it.

A small AutoencoderKL (Rombach et al. 2022): squared error of pixels, a small pull of the posterior
to the standard normal, and TAESD as a teacher at first, so that colour is learned early and the
latents resemble Stable Diffusion's.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.files import replacing
from pipeline.images import resize_image
from pipeline.pixels import to_pm1
from pipeline.seeds import seed_at
from pipeline.tiny_vae.pictures import FULL_PX, Pictures

LOG_EVERY = 50  # steps
SAVE_EVERY = 100  # steps


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; a phase is (share of all steps, batch, crop size in px)."""

    steps: int = 10_000
    seed: int = 0
    # Small crops are quick; the last phase sees whole pictures, so that the statistics inside
    # GroupNorm are those of use.
    phases: tuple[tuple[float, int, int], ...] = ((0.6, 16, 64), (0.9, 8, 112), (1.0, 4, 224))
    lr: float = 2e-3
    warmup_steps: int = 100
    # Without more weight on colour, and on averages of 16 × 16 px, the colour of even areas is
    # learned last: most pictures are grey.
    chroma_weight: float = 2.0
    coarse_weight: float = 1.0
    kl_weight: float = 1.5e-4
    # A decoder that ignores colour and an encoder that drops it keep each other so. While guided,
    # half of each batch is decoded from the teacher's latents instead, and the encoder is pulled
    # there: two plain regressions. Afterwards both are free to do better than the teacher.
    guided_share: float = 0.4
    guided_weight: float = 0.5
    free_weight: float = 0.01
    ema_decay: float = 0.99

    def phase(self, step: int) -> tuple[int, int]:
        """Batch size and crop size of a step."""
        return next((n, px) for share, n, px in self.phases if step < share * self.steps)

    def guided(self, step: int) -> bool:
        """Whether the decoder still learns from the teacher's latents."""
        return step < self.guided_share * self.steps

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to 1 % of the peak."""
        ramp = min(1.0, (step + 1) / self.warmup_steps)
        fall = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * ramp * (0.01 + 0.99 * fall)


def build_model() -> AutoencoderKL:
    """The untrained tiny VAE: 8× down, 4 latent channels, 1.64 M parameters, no attention."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        # One group: normalised in small ones, an evenly coloured area keeps little but the signs
        # of its features, and colour is lost.
        norm_num_groups=1,
        latent_channels=4,
        mid_block_add_attention=False,
        sample_size=224,
        force_upcast=False,
    )


def loss_terms(
    model: AutoencoderKL, teacher: AutoencoderTiny, pixels: torch.Tensor, step: int, recipe: Recipe
) -> dict[str, torch.Tensor]:
    """Squared errors of pixels in [-1, 1], kl and teacher per latent number, each unweighted.

    pixels     (B, 3, H, W) float32 in [-1, 1]
    """
    posterior = model.encode(pixels).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    generator = torch.Generator().manual_seed(seed_at(recipe.seed, step))
    latent = mean + torch.randn(mean.shape, generator=generator) * posterior.std.float()
    # The mean is what the project decodes, so every other picture is decoded without noise.
    latent[::2] = mean[::2]
    taught = (len(pixels) + 1) // 2 if recipe.guided(step) else 1
    with torch.no_grad():
        target = teacher.encode(pixels[:taught]).latents.float()
    if recipe.guided(step):
        latent[:taught] = target
    error = model.decode(latent).sample.float() - pixels
    return {
        "mse": error.square().mean(),
        "chroma": (error - error.mean(1, keepdim=True)).square().mean(),
        "coarse": F.avg_pool2d(error, 16).square().mean(),
        "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        "teacher": F.mse_loss(mean[:taught], target),
    }


def train(
    pictures: Pictures,
    teacher: AutoencoderTiny,
    recipe: Recipe,
    work: Path,
    log: Callable[[dict[str, Any]], None],
) -> AutoencoderKL:
    """Train, or go on from work/state.pt; returns the model of averaged weights."""
    torch.manual_seed(recipe.seed)
    model = build_model()  # not channels_last: GroupNorm runs backward 30 % faster without, on CPU
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
    # No clipping of gradients: it would mute the batches with colour, whose gradients are largest.
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    first = resume(work / "state.pt", parts)
    for step in range(first, recipe.steps):
        started = time.monotonic()
        pixels = pictures.batch(step, *recipe.phase(step))
        with torch.autocast("cpu", torch.bfloat16):
            terms = loss_terms(model, teacher, pixels, step, recipe)
        loss = terms["mse"] + recipe.chroma_weight * terms["chroma"]
        loss = loss + recipe.coarse_weight * terms["coarse"] + recipe.kl_weight * terms["kl"]
        pull = recipe.guided_weight if recipe.guided(step) else recipe.free_weight
        loss = loss + pull * terms["teacher"]
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        if step % LOG_EVERY == 0:
            values = {name: round(term.item(), 5) for name, term in terms.items()}
            log({"step": step, "step_s": round(time.monotonic() - started, 2)} | values)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            save(work / "state.pt", parts, step + 1)
    averaged = average.module
    assert isinstance(averaged, AutoencoderKL)
    return averaged.eval()


def save(path: Path, parts: dict[str, Any], step: int) -> None:
    """Write the whole state of training beside the old one, then put it in its place."""
    states = {name: part.state_dict() for name, part in parts.items()}
    with replacing(path) as partial:
        torch.save({"step": step, **states}, partial)


def resume(path: Path, parts: dict[str, Any]) -> int:
    """Load the state of training if there is one; returns the step to go on with."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def scaling_factor_of(model: AutoencoderKL, pictures: Pictures) -> float:
    """1 / standard deviation of the raw latents of 200 training images at 224 × 224."""
    means = []
    with torch.inference_mode():
        for image in pictures.ultrasound[:: max(1, len(pictures.ultrasound) // 200)]:
            pixels_u8 = torch.from_numpy(resize_image(np.asarray(image), FULL_PX))
            pixels_pm1 = to_pm1(pixels_u8.permute(2, 0, 1)[None])
            means.append(model.encode(pixels_pm1).latent_dist.mean)
    return 1 / torch.cat(means).std().item()


def export(model: AutoencoderKL, scaling_factor: float, folder: Path) -> None:
    """Write config.json and the weights in half precision, as diffusers reads them."""
    model.register_to_config(scaling_factor=round(scaling_factor, 4))
    copy.deepcopy(model).half().save_pretrained(folder)
