"""Scores of tokenizers side by side, as in the tiny VAE's model card: fidelity, scale, speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pipeline.archive.layouts import layout_named
from pipeline.fidelity import decoded_pm1, mask_dsc, psnr_db
from pipeline.images import read_image, read_union, resize_image, resize_mask
from pipeline.pixels import mask_pixels, to_pm1
from pipeline.tiny_vae.pictures import find_entries
from pipeline.tokenizer import Tokenizer

SIZE_PX = 224
BATCH = 4
ROUNDS = 5


@dataclass(frozen=True)
class Pairs:
    """Images and masks of one data set as a tokenizer reads them.

    images     (N, 3, 224, 224) float32 in [-1, 1]
    masks      (N, 224, 224) bool
    """

    images: torch.Tensor
    masks: torch.Tensor


def read_pairs(
    layout_name: str, root: Path, split_file: Path | None, split: str, limit: int
) -> Pairs:
    """Images and masks of an archive, resized to 224 × 224.

    split_file only the names it puts in `split`; None takes all
    limit      at most so many, evenly spaced over the sorted names
    raises     as find_entries and read_image do
    """
    entries = find_entries(layout_name, root, split_file, split)
    if limit < len(entries):
        entries = [entries[i * len(entries) // limit] for i in range(limit)]
    labels = layout_named(layout_name).labels
    images = [resize_image(read_image(entry.image), SIZE_PX) for entry in entries]
    unions = [read_union(entry.masks, labels=labels) for entry in entries]
    masks = [resize_mask(union, SIZE_PX) for union in unions]
    images_pm1 = to_pm1(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    return Pairs(images_pm1, torch.from_numpy(np.stack(masks)))


@torch.inference_mode()
def round_trip(tokenizer: Tokenizer, pixels_pm1: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Decoded pixels in [-1, 1], raw means and raw standard deviations of (N, 3, H, W) pixels."""
    outputs, means, stds = [], [], []
    for part in pixels_pm1.split(BATCH):
        mean, std = tokenizer.encode(part)
        outputs.append(decoded_pm1(tokenizer, mean))
        means.append(mean)
        stds.append(torch.zeros_like(mean) if std is None else std)
    return torch.cat(outputs), torch.cat(means), torch.cat(stds)


def score_fidelity(tokenizer: Tokenizer, name: str, pairs: Pairs) -> dict[str, float]:
    """Round trip of a data set's images and masks, and the spread of its scaled latents."""
    scale = tokenizer.scaling_factor
    output, image_mean, std = round_trip(tokenizer, pairs.images)
    psnr = psnr_db(output, pairs.images)
    output, mask_mean, _ = round_trip(tokenizer, mask_pixels(pairs.masks))
    dsc = mask_dsc(output, pairs.masks)
    return {
        f"{name} images": len(psnr),
        f"{name} image PSNR, dB": psnr.mean().item(),
        f"{name} mask DSC, mean": dsc.mean().item(),
        f"{name} mask DSC, worst": dsc.min().item(),
        f"{name} std of scaled image latents": scale * image_mean.std().item(),
        f"{name} std of scaled mask latents": scale * mask_mean.std().item(),
        f"{name} posterior std, scaled, median": scale * std.median().item(),
    }


def score_extremes(tokenizer: Tokenizer) -> dict[str, float]:
    """Share of finite numbers after a round trip of black, white and noise, in fp32 and bf16."""
    noise = torch.rand(1, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pixels = torch.cat([torch.full_like(noise, -1), torch.ones_like(noise), noise])
    shares = []
    for precision in ("fp32", "bf16"):
        with torch.inference_mode():
            mean, std = tokenizer.encode(pixels, precision)
            parts = [mean, tokenizer.decode(mean, precision)] + ([] if std is None else [std])
        shares += [part.isfinite().float().mean().item() for part in parts]
    return {"finite on black, white, noise": min(shares)}


@torch.inference_mode()
def score_speed(tokenizers: Sequence[Tokenizer]) -> list[dict[str, float]]:
    """Seconds an image of encode and decode, fp32, batch 4: the best of rounds taken in turn."""
    pixels = torch.zeros(BATCH, 3, SIZE_PX, SIZE_PX)
    latents = [tokenizer.encode(pixels)[0] for tokenizer in tokenizers]
    pairs = list(zip(tokenizers, latents, strict=True))
    encodes = [partial(tokenizer.encode, pixels) for tokenizer, _ in pairs]
    decodes = [partial(tokenizer.decode, latent) for tokenizer, latent in pairs]
    # Taken in turn, so that whatever else the machine does slows all of them.
    rounds = [[seconds(step) / BATCH for step in encodes + decodes] for _ in range(ROUNDS)]
    best = np.min(rounds, axis=0).reshape(2, -1)
    return [{"encode, s an image": float(e), "decode, s an image": float(d)} for e, d in best.T]


def seconds(step: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
