"""Measured speed as ratios: what is compared runs in turns in one process, so drift cancels."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmm.decoder import MaskDecoder
from lmm.latents import Batch, load_latents, model_latent
from lmm.losses import LEVELS, training_loss
from lmm.model import LatentMappingModel
from lmm.settings import TrainSettings
from lmm.train import epoch_batches, make_optimiser, train_step
from pipeline.cells import CellEncoder
from pipeline.encode import encode
from pipeline.manifest import Manifest
from pipeline.store import LatentStore
from pipeline.tokenizer import Tokenizer, load_tokenizer_of

_ROUNDS = 3


def bench_encode(
    manifest: Manifest, tokenizer: Tokenizer, *, views: int, size: int, precision: str, samples: int
) -> dict[str, Any]:
    """Whole encode (files to finished store) against the bare tokenizer on ready tensors.

    Both encode the same number of images and masks, at the same batch size, in turns.

    returns  samples_per_s and tokenizer_samples_per_s in cells per second, and efficiency, their
             ratio; 1 would mean that reading, views, writing and receipt cost nothing
    """
    few = replace(manifest, frame=manifest.frame.head(samples))
    cells = len(few.frame) * views
    batch = CellEncoder(tokenizer, precision, None).batch_size
    pixels = torch.rand(2 * batch, 3, size, size, device=tokenizer.device) * 2 - 1

    def bare() -> None:
        for _ in range(0, cells, batch):
            tokenizer.encode(pixels, precision)[0].cpu()

    tokenizer.encode(pixels, precision)  # kernels are chosen at the first call
    whole_s = bare_s = 0.0
    for _ in range(_ROUNDS):
        bare_s += seconds(bare)
        with tempfile.TemporaryDirectory() as folder:
            url = str(Path(folder) / "bench.zarr")
            report = encode(few, url, tokenizer, views=views, size=size, precision=precision)
            whole_s += report.seconds
    rate, bare_rate = _ROUNDS * cells / whole_s, _ROUNDS * cells / bare_s
    return {
        "samples_per_s": rate,
        "tokenizer_samples_per_s": bare_rate,
        "efficiency": rate / bare_rate,
        "cells": cells,
        "batch_size": batch,
        "precision": precision,
        "device": str(tokenizer.device),
    }


def bench_train(
    store: LatentStore, settings: TrainSettings, device: torch.device, *, steps: int
) -> dict[str, Any]:
    """The training loop against its bare compute, and against encoding and decoding at every step.

    loop     `train`'s own steps from cached latents
    compute  the same forward, backward and optimiser step on one ready batch
    online   what training without a store costs, as the GMS authors' code does it: image and mask
             encoded in each step and every level decoded by a call of its own; reading and
             augmenting images is left out, in its favour

    returns  steps_per_s, compute_steps_per_s, efficiency (loop ÷ compute), online_steps_per_s and
             speedup (loop ÷ online)
    """
    latents = load_latents(store, "train", masks=settings.loss != "lm", device=device)
    tokenizer = load_tokenizer_of(store.tokenizer, device)
    decoder = MaskDecoder(tokenizer, settings.precision)
    torch.manual_seed(settings.seed)
    model = LatentMappingModel(store.latent_shape[0], settings.width).to(device)
    optimiser = make_optimiser(model, settings)

    def loop() -> None:
        done = epoch = 0
        while done < steps:
            epoch += 1
            for batch in epoch_batches(latents, settings, epoch):
                loss = train_step(model, optimiser, batch, decoder, settings)
                done += 1
                if done == steps:
                    break
        loss["total"].item()

    ready = next(epoch_batches(latents, settings, 1))

    def compute() -> None:
        for _ in range(steps):
            loss = train_step(model, optimiser, ready, decoder, settings)
        loss["total"].item()

    count = len(ready.z_image)
    pixels = torch.rand(count, 3, store.size, store.size, device=device) * 2 - 1

    def online() -> None:
        loss = _online_step(model, optimiser, pixels, ready, decoder, settings)
        loss.item()

    train_step(model, optimiser, ready, decoder, settings)  # kernels are chosen at the first call
    loop_s = compute_s = online_s = 0.0
    for _ in range(_ROUNDS):
        compute_s += seconds(compute)
        loop_s += seconds(loop)
        online_s += seconds(online)
    rates = [_ROUNDS * steps / loop_s, _ROUNDS * steps / compute_s, _ROUNDS / online_s]
    return {
        "steps_per_s": rates[0],
        "compute_steps_per_s": rates[1],
        "efficiency": rates[0] / rates[1],
        "online_steps_per_s": rates[2],
        "speedup": rates[0] / rates[2],
        "loss": settings.loss,
        "batch_size": count,
        "precision": settings.precision,
        "device": str(device),
    }


def _online_step(
    model: LatentMappingModel,
    optimiser: torch.optim.Optimizer,
    pixels: torch.Tensor,
    batch: Batch,
    decoder: MaskDecoder,
    settings: TrainSettings,
) -> torch.Tensor:
    """One step without a store. The encodes' results are scaled and fed, as they would be."""
    tokenizer = decoder.tokenizer
    scaling = (tokenizer.scaling_factor, tokenizer.shift_factor)
    z_image = model_latent(tokenizer.encode(pixels, settings.precision)[0], *scaling)
    z_mask = model_latent(tokenizer.encode(pixels, settings.precision)[0], *scaling)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        # Tensors made in inference mode take no part in autograd; their copies do.
        z_mask_hat = model(z_image.clone())
    grey = None
    if settings.loss != "lm":
        grey = torch.stack([decoder(z_mask_hat[level]) for level in LEVELS])
    loss = training_loss(
        settings.loss, z_mask_hat=z_mask_hat, z_mask=z_mask.clone(), grey=grey, mask=batch.mask
    )
    optimiser.zero_grad()
    loss["total"].backward()
    optimiser.step()
    return loss["total"].detach()


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock time of a call, s."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
