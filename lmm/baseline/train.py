"""Training of a baseline: a manifest in, a run directory with the selected network out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lmm.baseline.learner import PixelLearner
from lmm.baseline.network import build_network, describe_network
from lmm.baseline.pixels import ManifestImages, PixelBatches, read_pixels, split_of
from lmm.baseline.settings import BaselineSettings
from lmm.batches import steps_per_epoch
from lmm.loop import fit
from lmm.run import Run, begin_run, run_lock
from lmm.run.lineage import lineage_of
from lmm.splits import images_by_split
from pipeline.telling import Progress


def train_baseline(
    images: ManifestImages,
    out: Path,
    settings: BaselineSettings,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one network on a manifest and keep the epoch that the selection split chooses.

    Order, log, the choice of the epoch, checkpoints and resuming are those of `lmm.loop.fit`, as in
    `lmm.train.train`.

    resume     go on from the last whole epoch, to the weights of the uninterrupted run, bit for bit
    overwrite  replace a run that has other settings or another manifest, instead of refusing it
    progress   called with (steps done, steps in all)
    returns    the summary: keys as `gms-lmm train --json` prints them
    raises     UsageError for settings that do not fit, or without MONAI; InputError when a file is
               gone or has changed; ArtefactError for a run that exists and is another's, or
               that another process trains
    """
    for split in ("train", settings.select_on):
        split_of(images, split, settings.fold)
    torch.manual_seed(settings.seed)
    network = build_network(settings.model, settings.size)
    with run_lock(out):
        run = start_baseline(out, images, settings, resume=resume, overwrite=overwrite)
        if run.finished:
            return run.summary()
        learner = PixelLearner(network.to(device), settings)
        batches = PixelBatches(read_pixels(images, "train", settings.fold), settings, device)
        selection = read_pixels(images, settings.select_on, settings.fold)
        return fit(run, learner, batches, selection, progress=progress)


def start_baseline(
    out: Path,
    images: ManifestImages,
    settings: BaselineSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """The run to be trained on a manifest; as `lmm.run.start_run` on a store."""
    manifest = images.manifest
    window = {"window": list(manifest.window)} if manifest.window else {}
    counts = images.samples["split"].value_counts().sort("split").rows()
    description = {
        "model": describe_network(settings.model),
        "settings": asdict(settings),
        "store": None,
        "manifest": {
            "url": images.url,
            "digest": manifest.digest,
            "size": images.size,
            "preprocessing": {"mask_values": manifest.mask_values, **window},
            "images": images_by_split(images.samples, settings.fold),
            "by_split": dict(counts),
        },
        "tokenizer": None,
    }
    seen = (split_of(images, split, settings.fold) for split in ("train", settings.select_on))
    lineage = lineage_of(*seen)
    return begin_run(
        out, description, lineage, software=["monai"], resume=resume, overwrite=overwrite
    )


def describe(images: ManifestImages, settings: BaselineSettings) -> dict[str, Any]:
    """The whole of a run before it starts: settings, parameters, steps, bytes in memory.

    raises  UsageError for settings that do not fit the manifest, or without MONAI
    """
    samples = len(split_of(images, "train", settings.fold))
    network = build_network(settings.model, settings.size)
    return {
        **asdict(settings),
        "samples": samples,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "steps": settings.epochs * steps_per_epoch(samples, settings.batch_size),
        "bytes_in_memory": samples * 4 * settings.size**2,
    }
