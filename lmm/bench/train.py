"""How fast the training loop is, against its bare compute and against training without a store."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, count, islice, repeat
from typing import Any

import torch

from lmm.batches import open_batches
from lmm.bench.turns import in_turns
from lmm.decoder import MaskDecoder
from lmm.latents import Batch, model_latent
from lmm.losses import LEVELS, dice_loss, lm_loss
from lmm.settings import TrainSettings
from lmm.step import Learner
from lmm.train import new_learner
from pipeline.device import autocast
from pipeline.store import LatentStore
from pipeline.tokenizer import load_tokenizer_of


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
