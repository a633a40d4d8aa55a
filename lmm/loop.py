"""The loop of training: any learner, batches and selection in, a run with the chosen epoch out."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import torch

from lmm.batches import Batches, steps_per_epoch
from lmm.metrics import Floats, score
from lmm.run import Run, write_json
from lmm.run.candidates import Candidates
from lmm.run.checkpoint import part_of, read_checkpoint, write_checkpoint
from lmm.selection import choose, contenders
from lmm.settings import LoopSettings
from lmm.student.file import STUDENT_FILE
from pipeline.errors import UsageError
from pipeline.files import replace_file
from pipeline.telling import Progress

Log = Callable[[dict[str, Any]], None]
Read = TypeVar("Read")  # what one step reads


class Selection(Protocol):
    """Clean images whose DSC chooses the epoch: `lmm.latents.Latents`, or pixels."""

    @property
    def sample_ids(self) -> Sequence[str]: ...
    @property
    def clean_masks(self) -> torch.Tensor:
        """Their true masks, (n, H, W) bool."""


Clean = TypeVar("Clean", bound=Selection)
_Read = TypeVar("_Read", contravariant=True)
_Clean = TypeVar("_Clean", contravariant=True)


class Trained(Protocol[_Read, _Clean]):
    """A model in training, with all that a step changes; see `lmm.step.Learner`."""

    steps: int

    @property
    def settings(self) -> LoopSettings: ...
    @property
    def model(self) -> torch.nn.Module: ...
    @property
    def optimiser(self) -> torch.optim.Optimizer: ...
    @property
    def decoder_calls(self) -> int: ...
    def step(self, batch: _Read, /) -> dict[str, torch.Tensor]: ...
    def masks(self, selection: _Clean, /) -> tuple[torch.Tensor, dict[str, float]]: ...
    def weights(self) -> dict[str, torch.Tensor]: ...
    def tensors(self) -> dict[str, torch.Tensor]: ...
    def load(self, tensors: dict[str, torch.Tensor], /) -> None: ...


@dataclass
class Progressed:
    """How far a run has come; all loop state beside weights and optimiser."""

    epoch: int = 0
    steps: int = 0
    seconds: float = 0.0
    decoder_calls: int = 0  # in training steps
    val_decoder_calls: int = 0
    best_epoch: int = 0  # the one that is kept
    best_dsc: float | None = None  # where there are images that choose it
    validations: int = 0
    student_agreement: float | None = None  # at the last validation


def fit(
    run: Run,
    learner: Trained[Read, Clean],
    batches: Batches[Read],
    selection: Clean | None,
    *,
    progress: Progress | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Every epoch from the last whole one on, each with its log line, scores and checkpoint.

    An interrupted run goes on to the very weights that the uninterrupted one ends with (on one
    machine), provided that the batches of an epoch are a function of the epoch.

    learner    as new; a run that has begun puts its weights and state back
    selection  the clean images whose DSC chooses the epoch; None keeps the last
    progress   called with (steps done, steps in all)
    log        called with each line of log.jsonl
    returns    the summary: keys as `gms-lmm train --json` prints them
    raises     UsageError when the loss is no longer finite
    """
    if run.finished:
        return run.summary()
    settings = learner.settings
    with _deterministic(settings.deterministic):
        candidates = Candidates(run.path, [] if selection is None else selection.sample_ids)
        state = _restore(run, learner, candidates)
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            started = time.monotonic()
            line = _train_epoch(learner, batches, epoch, progress)
            _require_finite(line, run)
            state.epoch, state.steps = epoch, learner.steps
            state.decoder_calls += line["decoder_calls"]
            last = epoch == settings.epochs
            if selection is not None and (epoch % settings.val_every == 0 or last):
                line |= _select(run, learner, selection, candidates, state)
            elif last:
                state.best_epoch = epoch
                _write_best(run, learner.weights(), state)
            state.seconds += time.monotonic() - started
            line["seconds"] = state.seconds
            with (run.path / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if log:
                log(line)
            write_checkpoint(run.path / "last.safetensors", learner.tensors(), asdict(state))
            if candidates.epochs and candidates.epochs[-1] == epoch:
                candidates.drop(contenders(candidates.epochs, candidates.dsc, settings))
    candidates.drop()
    return _finish(run, learner, state)


def learning_rate(epoch: int, settings: LoopSettings) -> float:
    """Learning rate of epoch 1…epochs: linear warm-up, then a cosine to zero, by epoch.

    Warm-up takes 5 epochs as in the GMS authors' code, or a tenth of a run shorter than 50.
    """
    warmup = min(5, settings.epochs // 10)
    if epoch <= warmup:
        return settings.lr * epoch / (warmup + 1)
    share = (epoch - 1 - warmup) / (settings.epochs - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * share))


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _train_epoch(
    learner: Trained[Read, Clean], batches: Batches[Read], epoch: int, progress: Progress | None
) -> dict[str, Any]:
    """Every step of one epoch; the epoch's line of the log."""
    settings = learner.settings
    started, calls = time.monotonic(), learner.decoder_calls
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
    steps = learner.steps - before
    line = {f"loss_{part}": torch.stack(of).sum().item() / steps for part, of in losses.items()}
    seconds = time.monotonic() - started
    return {
        "epoch": epoch,
        "lr": rate,
        "loss_total": sum(line.values()),
        **line,
        "steps_per_s": steps / seconds,
        "data_wait": waited / seconds,
        "decoder_calls": learner.decoder_calls - calls,
    }


def _select(
    run: Run,
    learner: Trained[Read, Clean],
    selection: Clean,
    candidates: Candidates,
    state: Progressed,
) -> dict[str, float]:
    """Score the epoch, and put the weights of the choice in their place; its scores for the log."""
    settings = learner.settings
    calls = learner.decoder_calls
    scores, dsc = validate(learner, selection)
    state.val_decoder_calls += learner.decoder_calls - calls
    state.student_agreement = scores.get("student_agreement")
    candidates.add(state.epoch, dsc)
    state.validations += 1
    epochs, every = candidates.epochs, candidates.dsc
    if state.epoch in contenders(epochs, every, settings):
        candidates.keep(state.epoch, learner.weights())
    chosen = choose(epochs, every, settings)
    if chosen != state.best_epoch:
        state.best_epoch, state.best_dsc = chosen, every[epochs.index(chosen)].mean().item()
        now = chosen == state.epoch
        _write_best(run, learner.weights() if now else candidates.weights(chosen), state)
    return scores


def validate(learner: Trained[Read, Clean], selection: Clean) -> tuple[dict[str, float], Floats]:
    """Scores of a learner's masks on a split's clean images.

    returns  as the log names them, mean DSC and IoU (fractions), and what the learner says of its
             masks beside; (n,) DSC
    """
    masks, beside = learner.masks(selection)
    scores = score(masks, selection.clean_masks)
    split = learner.settings.select_on
    line = {f"{split}_{name}": float(scores[name].mean()) for name in ("dsc", "iou")}
    return line | beside, scores["dsc"]


def _restore(run: Run, learner: Trained[Read, Clean], candidates: Candidates) -> Progressed:
    """Put learner, validations and log back to the last whole epoch; epoch 0 when there is none."""
    log = run.path / "log.jsonl"
    if not (run.path / "last.safetensors").exists():
        log.unlink(missing_ok=True)
        return Progressed()
    tensors, saved = read_checkpoint(run.path / "last.safetensors")
    learner.load(tensors)
    state = Progressed(**saved)
    candidates.restore(state.validations)
    learner.steps = state.steps
    # The process may have died between the log line and the checkpoint of an epoch.
    lines = log.read_text().splitlines()[: state.epoch]
    replace_file(log, "".join(line + "\n" for line in lines).encode())
    return state


def _write_best(run: Run, weights: dict[str, torch.Tensor], state: Progressed) -> None:
    progress = {"epoch": state.best_epoch, "dsc": state.best_dsc}
    write_checkpoint(run.path / "best.safetensors", part_of(weights, "model"), progress)
    if student := part_of(weights, "student"):
        write_checkpoint(run.path / STUDENT_FILE, student, progress)


def _require_finite(line: dict[str, Any], run: Run) -> None:
    bad = [key for key, value in line.items() if not math.isfinite(value)]
    if bad:
        raise UsageError(
            f"{run.path}: {', '.join(bad)} is not finite in epoch {line['epoch']}",
            "lower --lr, or --precision fp32; --resume goes on from the epoch before",
        )


def _finish(run: Run, learner: Trained[Read, Clean], state: Progressed) -> dict[str, Any]:
    settings = learner.settings
    summary = {
        "run": str(run.path),
        "parameters": sum(weight.numel() for weight in learner.model.parameters()),
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
