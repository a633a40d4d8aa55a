"""Training: cached latents in, a run directory with the selected model out."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmm.batches import Batches, open_batches
from lmm.checkpoint import (
    Run,
    create_run,
    open_run,
    read_checkpoint,
    weights_of,
    write_checkpoint,
    write_json,
)
from lmm.decoder import MaskDecoder
from lmm.latents import Latents, load_latents
from lmm.model import LatentMappingModel
from lmm.selection import is_kept, validate
from lmm.settings import TrainSettings, learning_rate, steps_per_epoch
from lmm.step import Learner
from lmm.student.distillation import LATER_LR, Distillation
from lmm.student.file import STUDENT_FILE, load_student
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore
from pipeline.telling import Progress
from pipeline.tokenizer import Tokenizer, load_tokenizer_of


@dataclass
class Progressed:
    """How far a run has come; all loop state beside weights and optimiser."""

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    decoder_calls: int = 0  # in training steps
    val_decoder_calls: int = 0
    best_epoch: int = 0  # the one that is kept
    best_dsc: float = 0.0
    peak_dsc: list[float] = field(default_factory=list)  # of each image, where the mean was highest
    student_agreement: float | None = None  # at the last validation


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
    """Train one LMM on a store and keep the epoch that the selection split chooses.

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

    batches = open_batches(store, settings, device)
    selection = load_latents(store, settings.select_on, views=1, device=device)
    tokenizer = load_tokenizer_of(store.tokenizer, device)
    learner = new_learner(store, settings, tokenizer)
    with _deterministic(settings.deterministic):
        state = _train_epochs(run, learner, batches, selection, progress, log)
    return _finish(run, learner, state)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _train_epochs(
    run: Run,
    learner: Learner,
    batches: Batches,
    selection: Latents,
    progress: Progress | None,
    log: Callable[[dict[str, Any]], None] | None,
) -> Progressed:
    """Every epoch from the last whole one on, each with its line, its scores, its checkpoint."""
    settings = learner.settings
    state = _restore(run, learner)
    for epoch in range(state.epoch + 1, settings.epochs + 1):
        started = time.monotonic()
        line = _train_epoch(learner, batches, epoch, progress)
        _require_finite(line, run)
        state.epoch, state.steps = epoch, learner.steps
        state.decoder_calls += line["decoder_calls"]
        if epoch % settings.val_every == 0 or epoch == settings.epochs:
            calls = learner.teacher.calls
            scores, dsc = validate(learner, selection)
            line |= scores
            state.val_decoder_calls += learner.teacher.calls - calls
            state.student_agreement = line.get("student_agreement")
            peak = np.array(state.peak_dsc)
            if not peak.size or is_kept(dsc, peak, settings.select_on):
                state.best_dsc, state.best_epoch = dsc.mean().item(), epoch
                _write_best(run, learner, state)
            if not peak.size or dsc.mean() > peak.mean():
                state.peak_dsc = dsc.tolist()
        state.seconds += time.monotonic() - started
        line["seconds"] = state.seconds
        with (run.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if log:
            log(line)
        _write_last(run, learner, state)
    return state


def new_learner(store: LatentStore, settings: TrainSettings, tokenizer: Tokenizer) -> Learner:
    """What a run starts from: new weights, and the store's student where the Dice loss wants it."""
    teacher = MaskDecoder(tokenizer, settings.precision)
    distillation = None
    if settings.has_student:
        student = load_student(store, teacher)
        distillation = Distillation(student, teacher, LATER_LR, settings.seed)
    torch.manual_seed(settings.seed)
    model = LatentMappingModel(store.latent_shape[0], settings.width).to(tokenizer.device)
    return Learner(model, settings, teacher, distillation)


def _train_epoch(
    learner: Learner, batches: Batches, epoch: int, progress: Progress | None
) -> dict[str, Any]:
    """Every step of one epoch; the epoch's line of the log."""
    settings = learner.settings
    started, calls = time.monotonic(), learner.teacher.calls
    rate = learning_rate(epoch, settings)
    for group in learner.optimiser.param_groups:
        group["lr"] = rate
    losses: dict[str, list[torch.Tensor]] = {}
    before = learner.steps
    in_all = settings.epochs * steps_per_epoch(len(batches), settings.batch_size)
    waited, asked = 0.0, time.monotonic()
    for batch in batches.epoch(epoch):
        waited += time.monotonic() - asked
        for part, loss in learner.step(batch).items():
            losses.setdefault(part, []).append(loss)
        if progress:
            progress(learner.steps, in_all)
        asked = time.monotonic()
    # The one host–device synchronisation of an epoch.
    line = {f"loss_{part}": torch.stack(values).mean().item() for part, values in losses.items()}
    seconds = time.monotonic() - started
    return {
        "epoch": epoch,
        "lr": rate,
        "loss_total": sum(line.values()),
        **line,
        "steps_per_s": (learner.steps - before) / seconds,
        "data_wait": waited / seconds,
        "decoder_calls": learner.teacher.calls - calls,
    }


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


def _restore(run: Run, learner: Learner) -> Progressed:
    """Put learner and log back to the last whole epoch; epoch 0 when there is none."""
    log = run.path / "log.jsonl"
    if not (run.path / "last.safetensors").exists():
        log.unlink(missing_ok=True)
        return Progressed()
    tensors, saved = read_checkpoint(run.path / "last.safetensors")
    learner.load(tensors)
    state = Progressed(**saved)
    learner.steps = state.steps
    # The process may have died between the log line and the checkpoint of an epoch.
    lines = log.read_text().splitlines()[: state.epoch]
    log.write_text("".join(line + "\n" for line in lines))
    return state


def _write_best(run: Run, learner: Learner, state: Progressed) -> None:
    progress = {"epoch": state.best_epoch, "dsc": state.best_dsc}
    write_checkpoint(run.path / "best.safetensors", weights_of(learner.model), progress)
    if learner.distillation:
        student = weights_of(learner.distillation.decoder.student)
        write_checkpoint(run.path / STUDENT_FILE, student, progress)


def _write_last(run: Run, learner: Learner, state: Progressed) -> None:
    write_checkpoint(run.path / "last.safetensors", learner.tensors(), asdict(state))


def _require_finite(line: dict[str, Any], run: Run) -> None:
    bad = [key for key, value in line.items() if not math.isfinite(value)]
    if bad:
        raise UsageError(
            f"{run.path}: {', '.join(bad)} is not finite in epoch {line['epoch']}",
            "lower --lr, or --precision fp32; --resume goes on from the epoch before",
        )


def _finish(run: Run, learner: Learner, state: Progressed) -> dict[str, Any]:
    settings = learner.settings
    summary = {
        "run": str(run.path),
        "parameters": learner.model.parameter_count,
        "epochs": state.epoch,
        "steps": state.steps,
        "best_epoch": state.best_epoch,
        "val_dsc": state.best_dsc if settings.select_on == "val" else None,
        "select_on": settings.select_on,
        "select_dsc": state.best_dsc,
        "seconds": state.seconds,
        "decoder_calls": state.decoder_calls,
        "val_decoder_calls": state.val_decoder_calls,
        "student_agreement": state.student_agreement,
    }
    write_json(run.path / "summary.json", summary)
    return summary
