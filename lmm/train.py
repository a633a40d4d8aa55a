"""Training: cached latents in, a run directory with the selected model out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmm.batches import open_batches, steps_per_epoch, views_of
from lmm.decoder import MaskDecoder
from lmm.latents import SplitReader, load_latents
from lmm.loop import Log, fit
from lmm.losses import loss_of
from lmm.model import LatentMappingModel
from lmm.run import Run, run_lock, start_run, write_json
from lmm.settings import TrainSettings
from lmm.splits import rows_to_train_on
from lmm.step import Learner, compiled
from lmm.student.distillation import LATER_LR, Distillation
from lmm.student.file import load_student
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore
from pipeline.telling import Progress
from pipeline.tokenizer import Tokenizer, load_tokenizer_of


def train(
    store: LatentStore,
    out: Path,
    settings: TrainSettings,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """Train one LMM on a store and keep the epoch that the selection split chooses, if any.

    An interrupted run goes on from its last whole epoch with `resume`, to the very weights that
    the uninterrupted run ends with (on one machine): the data order and noise of an epoch are a
    pure function of (seed, epoch).

    overwrite  replace a run that has other settings or another store, instead of refusing it
    progress   called with (steps done, steps in all)
    log        called with each line of log.jsonl
    returns    the summary: keys as `gms-lmm train --json` prints them
    raises     UsageError for settings that do not fit; ArtefactError for an unfinished store, one
               that changes while it is read, or a run that exists and is another's, or that
               another process trains
    """
    require_fit(store, settings)
    store.require_complete()
    with run_lock(out):
        run = start_run(out, store, settings, resume=resume, overwrite=overwrite)
        if run.finished:
            return run.summary()
        batches = open_batches(store, settings, device)
        selection = None
        if settings.select_on != "none":
            selection = load_latents(store, settings.select_on, views=1, device=device)
        learner = new_learner(store, settings, load_tokenizer_of(store.tokenizer, device))
        if learner.distillation and "student" not in run.description:
            run.description["student"] = learner.distillation.origin
            write_json(run.path / "run.json", run.description)
        return fit(run, learner, batches, selection, progress=progress, log=log)


def refitted(run: Run, store: LatentStore) -> TrainSettings:
    """The settings of a run for training it anew on train and val, as long as val chose.

    raises  ArtefactError for a run that is not finished, whose epoch val did not choose, or that
            was trained on another store
    """
    summary = run.summary()
    if run.is_baseline or summary.get("select_on") != "val":
        raise ArtefactError(
            f"{run.path} is no latent mapping model whose epoch val chose",
            "--refit a run of gms-lmm train",
        )
    if run.description["store"]["receipt"] != store.receipt():
        raise ArtefactError(
            f"{run.path} was trained on {run.description['store']['url']} as it was then, and "
            f"{store.url} is other data",
            "--refit with the store that it was trained on",
        )
    chosen = {"epochs": summary["best_epoch"], "select_on": "none"}
    return TrainSettings(**{**run.description["settings"], **chosen})


def new_learner(store: LatentStore, settings: TrainSettings, tokenizer: Tokenizer) -> Learner:
    """What a run starts from: new weights, and the store's student where the Dice loss wants it."""
    teacher = MaskDecoder(tokenizer, settings.precision)
    distillation = None
    if settings.has_student:
        kept = load_student(store, teacher, settings.fold)
        distillation = Distillation(kept.network, teacher, LATER_LR, settings.seed, kept.origin)
    torch.manual_seed(settings.seed)
    model = LatentMappingModel(store.latent_shape[0], settings.width).to(tokenizer.device)
    loss = loss_of(settings, distillation.decoder if distillation else teacher)
    forward = compiled(model, settings.supervised_levels) if settings.compile else None
    return Learner(model, loss, settings, teacher, distillation, forward)


def describe(store: LatentStore, settings: TrainSettings) -> dict[str, Any]:
    """The whole of a run before it starts: settings, parameters, steps, bytes to read.

    raises  UsageError for settings that do not fit the store; ArtefactError when it is unfinished
    """
    require_fit(store, settings)
    rows, views = rows_to_train_on(store.samples, settings), views_of(store, settings)
    reader = SplitReader(store, "train", masks=settings.has_dice, std=settings.has_noise, rows=rows)
    samples = len(reader.places)
    return {
        **asdict(settings),
        "samples": samples,
        "views": views,
        "parameters": LatentMappingModel(store.latent_shape[0], settings.width).parameter_count,
        "steps": settings.epochs * steps_per_epoch(samples, settings.batch_size),
        "bytes_in_memory": samples * views * reader.cell_bytes,
    }


def require_fit(store: LatentStore, settings: TrainSettings) -> None:
    """Raise UsageError when settings and store do not fit together."""
    if settings.posterior != "mean" and store.tokenizer["deterministic"]:
        raise UsageError(
            f"--posterior {settings.posterior} needs a posterior, and tokenizer "
            f"{store.tokenizer['name']!r} is deterministic",
            "--posterior mean",
        )
    if settings.views is not None and settings.views > store.views:
        raise UsageError(
            f"--views {settings.views} of {store.url}, which has {store.views}",
            f"--views {store.views}, or encode again with --views {settings.views}: only new ones "
            "are encoded",
        )
