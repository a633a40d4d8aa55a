"""Measured speed as ratios: what is compared runs in turns in one process, so drift cancels."""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count, islice, repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from lmm.batches import open_batches
from lmm.decoder import MaskDecoder, images_at_a_time
from lmm.latents import Batch, model_latent
from lmm.losses import LEVELS, dice_loss, lm_loss
from lmm.predict import Predictor
from lmm.predict_files import predict_files
from lmm.settings import TrainSettings
from lmm.step import Learner
from lmm.train import new_learner
from pipeline.cells import CellEncoder
from pipeline.device import autocast
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
        bare_s += seconds_of(bare)
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
    compute  the same steps on one ready batch
    lm       the same steps with the latent loss alone
    online   what training without a store costs, as the GMS authors' code does it: image and mask
             encoded in each step and every level decoded by a call of its own; reading and
             augmenting images is left out, in its favour. Once at the same precision, once at the
             authors' float32

    returns  steps_per_s, compute_steps_per_s, efficiency (loop ÷ compute), online_steps_per_s,
             speedup (loop ÷ online), online_fp32_steps_per_s, speedup_fp32, lm_steps_per_s and
             lm_ratio (seconds a step ÷ seconds an lm step); with `compile`, all but online compiled
    """
    tokenizer = load_tokenizer_of(store.tokenizer, device)
    learner = new_learner(store, settings, tokenizer)
    lm_learner = new_learner(store, replace(settings, loss="lm"), tokenizer)
    in_fp32 = replace(settings, precision="fp32")
    batches = open_batches(store, settings, device)
    ready = next(batches.epoch(1))
    pixels = torch.rand(len(ready.z_image), 3, store.size, store.size, device=device) * 2 - 1

    def run(learner: Learner, some: Iterable[Batch]) -> None:
        for batch in islice(some, steps):
            losses = learner.step(batch)
        losses["lm" if "lm" in losses else "seg"].item()  # waits for the device

    ways: dict[str, tuple[int, Callable[[], None]]] = {
        "compute": (steps, lambda: run(learner, repeat(ready))),
        "loop": (steps, lambda: run(learner, chain.from_iterable(map(batches.epoch, count(1))))),
        "lm": (steps, lambda: run(lm_learner, repeat(ready))),
        "online": (1, lambda: _online_step(lm_learner, pixels, ready, settings)),
        "online_fp32": (1, lambda: _online_step(lm_learner, pixels, ready, in_fp32)),
    }
    for one in (learner, lm_learner):
        one.step(ready)  # kernels are chosen at the first call
    seconds = in_turns({name: way for name, (_, way) in ways.items()})
    rate = {name: done / seconds[name] for name, (done, _) in ways.items()}
    return {
        "steps_per_s": rate["loop"],
        "compute_steps_per_s": rate["compute"],
        "efficiency": rate["loop"] / rate["compute"],
        "online_steps_per_s": rate["online"],
        "speedup": rate["loop"] / rate["online"],
        "online_fp32_steps_per_s": rate["online_fp32"],
        "speedup_fp32": rate["loop"] / rate["online_fp32"],
        "lm_steps_per_s": rate["lm"],
        "lm_ratio": rate["lm"] / rate["loop"],
        "loss": settings.loss,
        "seg_decoder": settings.seg_decoder,
        "batch_size": len(ready.z_image),
        "precision": settings.precision,
        "compile": settings.compile,
        "device": str(device),
    }


def _online_step(
    learner: Learner, pixels: torch.Tensor, batch: Batch, settings: TrainSettings
) -> None:
    """One step without a store. The encodes' results are scaled and fed, as they would be."""
    tokenizer, precision = learner.teacher.tokenizer, settings.precision
    decoder = MaskDecoder(tokenizer, precision)
    scaling = (tokenizer.scaling_factor, tokenizer.shift_factor)
    # Tensors made in inference mode take no part in autograd; their copies do.
    z_image = model_latent(tokenizer.encode(pixels, precision)[0], *scaling).clone()
    z_mask = model_latent(tokenizer.encode(pixels, precision)[0], *scaling).clone()
    with autocast(pixels.device, precision):
        z_mask_hat = learner.model(z_image)
    losses = [lm_loss(z_mask_hat, z_mask)] if settings.loss != "seg" else []
    if settings.has_dice:
        assert batch.mask is not None
        losses += [dice_loss(decoder(z_mask_hat[level]), batch.mask) for level in LEVELS]
    total = torch.stack(losses).sum()
    learner.optimiser.zero_grad()
    total.backward()
    learner.optimiser.step()
    total.item()


def bench_predict(
    model: Predictor, images: Sequence[Path], *, batch_size: int | None = None
) -> dict[str, Any]:
    """Whole predict (image files to mask files) against bare E, LMM and D on ready pixels.

    Both take the same number of images, at the same batch size and precision, in turns.

    returns  images_per_s, compute_images_per_s, and efficiency, their ratio; 1 would mean that
             reading, resizing and writing cost nothing
    """
    batch = batch_size or images_at_a_time(model.device)
    shape = (batch, model.size, model.size, 3)
    pixels_u8 = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def compute() -> None:
        for start in range(0, len(images), batch):
            model.grey_maps(pixels_u8[: len(images) - start])

    model.grey_maps(pixels_u8)  # kernels are chosen at the first call
    whole_s = compute_s = 0.0
    for _ in range(_ROUNDS):
        compute_s += seconds_of(compute)
        with tempfile.TemporaryDirectory() as folder:
            done = predict_files(model, images, Path(folder), batch_size=batch)
        if done.skipped:
            raise done.skipped[0]
        whole_s += done.seconds
    rate, compute_rate = _ROUNDS * len(images) / whole_s, _ROUNDS * len(images) / compute_s
    return {
        "images_per_s": rate,
        "compute_images_per_s": compute_rate,
        "efficiency": rate / compute_rate,
        "images": len(images),
        "batch_size": batch,
        "precision": model.precision,
        "device": str(model.device),
    }


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int = _ROUNDS) -> dict[str, float]:
    """Seconds that each way takes, the median of some rounds in which each has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(seconds_of(way))
    return {name: median(of) for name, of in seconds.items()}


def seconds_of(work: Callable[[], Any]) -> float:
    """Wall-clock seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
