"""Training: cached latents in, a run directory with the selected model out."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lmm.checkpoint import (
    Run,
    create_run,
    load_optimiser_state,
    load_weights,
    open_run,
    optimiser_state_of,
    read_checkpoint,
    weights_of,
    write_checkpoint,
    write_json,
)
from lmm.decoder import MaskDecoder
from lmm.latents import Batch, Latents, load_latents
from lmm.losses import LEVELS, training_loss
from lmm.metrics import score
from lmm.model import LatentMappingModel
from lmm.settings import TrainSettings, learning_rate, steps_per_epoch
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore
from pipeline.tokenizer import load_tokenizer_of

Progress = Callable[[int, int], None]


@dataclass
class Progressed:
    """How far a run has come; all loop state beside weights and optimiser."""

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    decoder_calls: int = 0  # in training steps
    val_decoder_calls: int = 0
    best_epoch: int = 0
    best_dsc: float = -1.0


def train(
    store: LatentStore,
    out: Path,
    settings: TrainSettings,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train one LMM on a store and keep the epoch that scores best on the selection split.

    An interrupted run goes on from its last whole epoch with `resume`, to the very weights that
    the uninterrupted run ends with (on one machine): the data order and noise of an epoch are a
    pure function of (seed, epoch).

    overwrite  replace a run that has other settings or another store, instead of refusing it
    progress   called with (steps done, steps in all)
    log        called with each line of log.jsonl
    returns    the summary: keys as `gms-lmm train --json` prints them
    raises     UsageError for settings that do not fit; ArtefactError for an unfinished store, or a
              run that exists and is another's
    """
    settings.check(store)
    store.require_complete()
    run = _open_or_create(store, out, settings, resume, overwrite)
    if run.finished:
        return run.summary()

    latents = load_latents(store, "train", masks=settings.loss != "lm", device=device)
    selection = load_latents(store, settings.select_on, views=1, device=device)
    decoder = MaskDecoder(load_tokenizer_of(store.tokenizer, device), settings.precision)
    torch.manual_seed(settings.seed)
    model = LatentMappingModel(latents.image_mean.shape[2], settings.width).to(device)
    optimiser = make_optimiser(model, settings)
    state = _restore(run, model, optimiser)
    per_epoch = steps_per_epoch(len(latents), settings.batch_size)

    for epoch in range(state.epoch + 1, settings.epochs + 1):
        started = time.monotonic()
        done = state.steps

        def report(steps: int, done: int = done) -> None:
            if progress:
                progress(done + steps, settings.epochs * per_epoch)

        line = _train_epoch(model, optimiser, latents, decoder, settings, epoch, report)
        _require_finite(line, run)
        state.epoch, state.steps = epoch, done + per_epoch
        state.decoder_calls += line["decoder_calls"]
        if epoch % settings.val_every == 0 or epoch == settings.epochs:
            calls = decoder.calls
            dsc, iou = validate(model, selection, decoder, settings)
            state.val_decoder_calls += decoder.calls - calls
            line |= {f"{settings.select_on}_dsc": dsc, f"{settings.select_on}_iou": iou}
            if dsc > state.best_dsc:
                state.best_dsc, state.best_epoch = dsc, epoch
                _write_best(run, model, state)
        state.seconds += time.monotonic() - started
        line["seconds"] = state.seconds
        with (run.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if log:
            log(line)
        _write_last(run, model, optimiser, state)
    return _finish(run, model, state, settings)


def _train_epoch(
    model: LatentMappingModel,
    optimiser: torch.optim.Optimizer,
    latents: Latents,
    decoder: MaskDecoder,
    settings: TrainSettings,
    epoch: int,
    report: Callable[[int], None],
) -> dict[str, Any]:
    """Every step of one epoch; the epoch's line of the log."""
    started, calls = time.monotonic(), decoder.calls
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(epoch, settings)
    losses: list[dict[str, torch.Tensor]] = []
    for batch in epoch_batches(latents, settings, epoch):
        losses.append(train_step(model, optimiser, batch, decoder, settings))
        report(len(losses))
    line: dict[str, Any] = {"epoch": epoch, "lr": learning_rate(epoch, settings)}
    # The one host–device synchronisation of an epoch.
    for part in losses[0]:
        line[f"loss_{part}"] = torch.stack([loss[part] for loss in losses]).mean().item()
    line["steps_per_s"] = len(losses) / (time.monotonic() - started)
    line["decoder_calls"] = decoder.calls - calls
    return line


def make_optimiser(model: LatentMappingModel, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW as the GMS authors use it, its update in one fused kernel."""
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, fused=True)


def epoch_batches(latents: Latents, settings: TrainSettings, epoch: int) -> Iterator[Batch]:
    """The batches of one epoch, a pure function of (seed, epoch): each sample once, in any view."""
    # Generator seeds of neighbouring epochs and seeds must not collide.
    seed = settings.seed * 1_000_003 + epoch
    host = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(latents), generator=host)
    view = torch.randint(latents.views, (len(latents),), generator=host)
    noisy = torch.rand(len(latents), generator=host) > 0.5
    order, view = order.to(latents.device), view.to(latents.device)
    normal = torch.Generator(latents.device).manual_seed(seed)
    for step in range(steps_per_epoch(len(latents), settings.batch_size)):
        rows = slice(step * settings.batch_size, (step + 1) * settings.batch_size)
        noise = None
        # The authors add noise to one batch in two.
        if settings.posterior == "sample" or (settings.posterior == "gms" and noisy[step]):
            shape = (len(order[rows]), *latents.image_mean.shape[2:])
            noise = torch.randn(shape, generator=normal, device=latents.device)
        yield latents.batch(view[rows], order[rows], settings.posterior, noise)


def train_step(
    model: LatentMappingModel,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    decoder: MaskDecoder,
    settings: TrainSettings,
) -> dict[str, torch.Tensor]:
    """One optimiser step; the parts of the loss, detached. The decoder runs once for all levels."""
    device = batch.z_image.device.type
    bf16 = settings.precision == "bf16"
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        z_mask_hat = model(batch.z_image)
    grey = None
    if settings.loss != "lm":
        levels = torch.cat([z_mask_hat[level] for level in LEVELS])
        grey = decoder(levels).unflatten(0, (len(LEVELS), len(batch.z_image)))
    loss = training_loss(
        settings.loss, z_mask_hat=z_mask_hat, z_mask=batch.z_mask, grey=grey, mask=batch.mask
    )
    optimiser.zero_grad()
    loss["total"].backward()
    optimiser.step()
    return {part: value.detach() for part, value in loss.items()}


@torch.inference_mode()
def predict_latents(
    model: LatentMappingModel, latents: Latents, precision: str, batch_size: int = 64
) -> torch.Tensor:
    """Ẑ_M of every clean image of a split: (n, C, h, w) float32, scaled."""
    model.eval()
    predictions = []
    for sample in torch.arange(len(latents), device=latents.device).split(batch_size):
        batch = latents.batch(torch.zeros_like(sample), sample)
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=precision == "bf16"):
            predictions.append(model(batch.z_image)["out"].float())
    model.train()
    return torch.cat(predictions)


def validate(
    model: LatentMappingModel, latents: Latents, decoder: MaskDecoder, settings: TrainSettings
) -> tuple[float, float]:
    """Mean DSC and IoU (fractions) of the decoded predictions on a split's clean images."""
    assert latents.mask_bits is not None
    masks = decoder.masks(predict_latents(model, latents, settings.precision))
    scores = score(masks, latents.unpack(latents.mask_bits[0]))
    return float(scores["dsc"].mean()), float(scores["iou"].mean())


def _open_or_create(
    store: LatentStore, out: Path, settings: TrainSettings, resume: bool, overwrite: bool
) -> Run:
    receipt = store.receipt()
    assert receipt is not None
    description = {
        "model": {"latent_channels": store.latent_shape[0], "width": settings.width},
        "settings": asdict(settings),
        "store": {"url": store.url, "size": store.size, "receipt": receipt},
        "tokenizer": store.tokenizer,
    }
    if not (out / "run.json").exists():
        return create_run(out, description)
    run = open_run(out)
    for key in ("settings", "store"):
        theirs, ours = run.description[key], description[key]
        other = [k for k in ours if k != "url" and (theirs or {}).get(k) != ours[k]]
        if other and overwrite:
            shutil.rmtree(out)
            return create_run(out, description)
        if other:
            raise ArtefactError(
                f"{out} is a run with another {key}: {', '.join(other)} differ",
                "--out another directory, or --overwrite to train it anew",
            )
    if not (run.finished or resume):
        raise ArtefactError(f"{out} is a run that was not finished", "--resume, or --out another")
    return run


def _restore(run: Run, model: LatentMappingModel, optimiser: torch.optim.Optimizer) -> Progressed:
    """Put model, optimiser and log back to the last whole epoch; epoch 0 when there is none."""
    log = run.path / "log.jsonl"
    if not (run.path / "last.safetensors").exists():
        log.unlink(missing_ok=True)
        return Progressed()
    tensors, saved = read_checkpoint(run.path / "last.safetensors")
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimiser": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    load_weights(model, parts["model"])
    load_optimiser_state(optimiser, parts["optimiser"])
    state = Progressed(**saved)
    # The process may have died between the log line and the checkpoint of an epoch.
    lines = log.read_text().splitlines()[: state.epoch]
    log.write_text("".join(line + "\n" for line in lines))
    return state


def _write_best(run: Run, model: LatentMappingModel, state: Progressed) -> None:
    progress = {"epoch": state.best_epoch, "dsc": state.best_dsc}
    write_checkpoint(run.path / "best.safetensors", weights_of(model), progress)


def _write_last(
    run: Run, model: LatentMappingModel, optimiser: torch.optim.Optimizer, state: Progressed
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in weights_of(model).items()}
    for name, tensor in optimiser_state_of(optimiser).items():
        tensors[f"optimiser.{name}"] = tensor
    write_checkpoint(run.path / "last.safetensors", tensors, asdict(state))


def _require_finite(line: dict[str, Any], run: Run) -> None:
    bad = [key for key, value in line.items() if not math.isfinite(value)]
    if bad:
        raise UsageError(
            f"{run.path}: {', '.join(bad)} is not finite in epoch {line['epoch']}",
            "lower --lr, or --precision fp32; --resume goes on from the epoch before",
        )


def _finish(
    run: Run, model: LatentMappingModel, state: Progressed, settings: TrainSettings
) -> dict[str, Any]:
    summary = {
        "run": str(run.path),
        "parameters": model.parameter_count,
        "epochs": state.epoch,
        "steps": state.steps,
        "best_epoch": state.best_epoch,
        "val_dsc": state.best_dsc if settings.select_on == "val" else None,
        "select_on": settings.select_on,
        "select_dsc": state.best_dsc,
        "seconds": state.seconds,
        "decoder_calls": state.decoder_calls,
        "val_decoder_calls": state.val_decoder_calls,
    }
    write_json(run.path / "summary.json", summary)
    return summary
