"""How fast the training loop is, against its bare compute and against training without a store."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, count, islice, repeat
from typing import Any

import torch

from lmm.batches import open_batches
from lmm.bench.turns import in_turns
from lmm.latents import Batch
from lmm.settings import LEVELS, TrainSettings
from lmm.step import Learner
from lmm.train import new_learner
from pipeline.store import LatentStore
from pipeline.tokenizer import Tokenizer, load_tokenizer_of


def bench_train(
    store: LatentStore, settings: TrainSettings, device: torch.device, *, steps: int
) -> dict[str, Any]:
    """The training loop against its bare compute, and against encoding and decoding at every step.

    loop     `train`'s own steps from cached latents
    compute  the same steps on one ready batch
    lm       the same steps on that batch with the latent loss alone
    online   what training without a store costs, as the GMS authors' code does it: image and mask
             encoded in each step and every level decoded by a call of its own; reading and
             augmenting images is left out, in its favour. Once at the same precision, once at the
             authors' float32

    returns  steps_per_s, compute_steps_per_s, efficiency (loop ÷ compute), online_steps_per_s,
             speedup (loop ÷ online), online_fp32_steps_per_s, speedup_fp32, lm_steps_per_s and
             lm_ratio (seconds a step ÷ seconds an lm step, both on the ready batch);
             with `compile`, all but online compiled
    """
    tokenizer = load_tokenizer_of(store.tokenizer, device)
    learner = new_learner(store, settings, tokenizer)
    lm_learner = new_learner(store, replace(settings, loss="lm"), tokenizer)
    online = _as_the_authors(store, settings, tokenizer)
    online_fp32 = _as_the_authors(store, replace(settings, precision="fp32"), tokenizer)
    batches = open_batches(store, settings, device)
    ready = next(batches.epoch(1))
    pixels = torch.rand(len(ready.z_image), 3, store.size, store.size, device=device) * 2 - 1

    def run(learner: Learner, some: Iterable[Batch]) -> None:
        for batch in islice(some, steps):
            parts = learner.step(batch)
        next(iter(parts.values())).item()  # waits for the device

    ways: dict[str, tuple[int, Callable[[], None]]] = {
        "loop": (steps, lambda: run(learner, chain.from_iterable(map(batches.epoch, count(1))))),
        "compute": (steps, lambda: run(learner, repeat(ready))),
        "lm": (steps, lambda: run(lm_learner, repeat(ready))),
        "online": (1, lambda: run(online, [_encoded(online, pixels, ready)])),
        "online_fp32": (1, lambda: run(online_fp32, [_encoded(online_fp32, pixels, ready)])),
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
        "lm_ratio": rate["lm"] / rate["compute"],
        "loss": settings.loss,
        "seg_decoder": settings.seg_decoder,
        "batch_size": len(ready.z_image),
        "precision": settings.precision,
        "compile": settings.compile,
        "device": str(device),
    }


def _as_the_authors(store: LatentStore, settings: TrainSettings, tokenizer: Tokenizer) -> Learner:
    """A learner that decodes every level of each step with D, by a call of its own."""
    whole = replace(settings, seg_decoder="full", seg_levels=",".join(LEVELS), seg_every=1)
    learner = new_learner(store, replace(whole, compile=False), tokenizer)
    learner.teacher.at_a_time = settings.batch_size
    return learner


def _encoded(learner: Learner, pixels_pm1: torch.Tensor, batch: Batch) -> Batch:
    """A batch as encoding image and mask in the step gives it."""
    teacher, precision = learner.teacher, learner.settings.precision

    def latent() -> torch.Tensor:
        mean, _ = teacher.tokenizer.encode(pixels_pm1, precision)
        # A tensor made in inference mode takes no part in autograd; its copy does.
        return teacher.scaled(mean).clone()

    return Batch(latent(), latent(), batch.mask)
