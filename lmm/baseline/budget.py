"""How many epochs fit into a budget of seconds: measured once, before a run, and kept by it."""

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch

from lmm.baseline.learner import PixelLearner
from lmm.baseline.network import build_network
from lmm.baseline.pixels import ManifestImages, PixelBatches, read_pixels
from lmm.baseline.settings import BaselineSettings
from lmm.batches import steps_per_epoch
from lmm.loop import validate
from lmm.run import open_run

TIMED_STEPS = 3


def settle_epochs(
    images: ManifestImages, out: Path, settings: BaselineSettings, device: torch.device
) -> BaselineSettings:
    """The settings with as many epochs as fit into `settings.seconds`; without those, as they are.

    A number and not a clock ends a run, so that its learning rate is a function of the epoch and
    it resumes to the same bits; a run that exists with the same settings keeps its number. The
    seconds it took are in its summary.

    raises  as `lmm.baseline.train.train_baseline` does
    """
    if settings.seconds is None:
        return settings
    if (out / "run.json").exists():
        begun = open_run(out).description["settings"] or {}
        if begun == {**asdict(settings), "epochs": begun.get("epochs")}:
            return replace(settings, epochs=begun["epochs"])
    fitting = settings.seconds / seconds_an_epoch(images, settings, device)
    return replace(settings, epochs=max(1, int(fitting)))


def seconds_an_epoch(
    images: ManifestImages, settings: BaselineSettings, device: torch.device
) -> float:
    """Time of an epoch and its share of a validation, from a few steps of a network of its own."""
    learner = PixelLearner(build_network(settings.model, settings.size).to(device), settings)
    batches = PixelBatches(read_pixels(images, "train", settings.fold), settings, device)
    selection = read_pixels(images, settings.select_on, settings.fold)

    def some_steps(count: int) -> None:
        for batch in islice(batches.epoch(1), count):
            learner.step(batch)["ce"].item()  # waits for the device

    some_steps(1)  # kernels are chosen at the first call
    taken = steps_per_epoch(len(batches), settings.batch_size)
    timed = min(TIMED_STEPS, taken)
    step_s = _seconds(lambda: some_steps(timed)) / timed
    return step_s * taken + _seconds(lambda: validate(learner, selection)) / settings.val_every


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started
