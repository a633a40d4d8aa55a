"""A run made ready for new images: its tokenizer, and the runs it is averaged with, checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lmm.averaging import VIEWS, Average
from lmm.baseline.network import network_of, require_latents
from lmm.predict.predictor import LatentPredictor, PixelPredictor, Predictor
from lmm.run import Run, open_run
from pipeline.device import choose_device
from pipeline.errors import ArtefactError, UsageError
from pipeline.tokenizer import Tokenizer, load_tokenizer, load_tokenizer_of, require_multiple


def load(
    run: str | Path | Run,
    *,
    tokenizer: str | None = None,
    size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    others: Sequence[str | Path | Run] = (),
    average: Average = "none",
    views: int = VIEWS,
) -> Predictor:
    """A run with its tokenizer, or of a baseline alone, ready for images.

        import lmm.predict

        model = lmm.predict.load("runs/busi-lm")
        mask = model("scan.png")

    run        a run directory
    tokenizer  name, path or hub id; only for a run whose description names none (of
               `import-checkpoint`), or where the weights now lie elsewhere
    size       side the images are resized to, px; only for a run that does not say it
    device     auto, cpu, cuda, …
    precision  auto: E as the run's store was encoded, float32 for an imported run, LMM and D in
               float32, so that masks are those that `evaluate` scores; fp32 or bf16: all three in
               it, which changes masks where it is not what auto takes
    others     runs whose grey maps are averaged with the run's, equally
    average    none, views or dihedral; see `LatentPredictor`
    views      how many `views` draws of an image, the clean one among them
    raises     ArtefactError when there is no run, the tokenizer is not the one whose latents it
               maps, or one of the others reads images otherwise; UsageError when tokenizer or size
               are missing, or contradict the run, or a baseline is averaged
    """
    run, *more = (one if isinstance(one, Run) else open_run(Path(one)) for one in (run, *others))
    if more or average != "none":
        require_latents([run, *more])
    for other in more:
        _require_alike(run, other)
    _require_said(run, tokenizer, size)
    side = _size_of(run, size)
    chosen = choose_device(device)
    if run.is_baseline:
        arithmetic = "fp32" if precision == "auto" else precision
        return PixelPredictor(network_of(run, chosen), side, arithmetic, run.window)
    loaded = _tokenizer_of(run, tokenizer, chosen)
    require_multiple(side, loaded)
    ours, of_e = ("fp32", run.e_precision) if precision == "auto" else (precision, precision)
    return LatentPredictor(
        run.model(chosen),
        loaded,
        side,
        ours,
        of_e,
        run.window,
        others=[other.model(chosen) for other in more],
        average=average,
        views=views,
    )


def _require_alike(run: Run, other: Run) -> None:
    """Raise ArtefactError unless two runs read images alike, so that one latent is for both."""
    for what in ("size", "tokenizer", "E's precision", "window", "latent channels"):
        ours, theirs = (_reading(one)[what] for one in (run, other))
        if ours != theirs:
            raise ArtefactError(
                f"{run.path} and {other.path} cannot be averaged: their {what} is {ours} and "
                f"{theirs}",
                "average runs on stores of one tokenizer, size and precision",
            )


def _reading(run: Run) -> dict[str, Any]:
    """How a run reads images."""
    store, tokenizer = run.description["store"], run.tokenizer
    return {
        "size": store and store["size"],
        "tokenizer": tokenizer and tokenizer["digest"],
        "E's precision": run.e_precision,
        "window": run.window,
        "latent channels": run.description["model"]["latent_channels"],
    }


def _size_of(run: Run, size: int | None) -> int:
    """Side of what the model reads, px: the run's own, or the one given for an imported run."""
    own = run.data
    if own is None:
        assert size is not None, "_require_said has asked for it"
        return size
    if size not in (None, own["size"]):
        raise UsageError(
            f"{run.path} was trained at {own['size']} px, asked for is {size} px", "no --size"
        )
    return int(own["size"])


def _require_said(run: Run, tokenizer: str | None, size: int | None) -> None:
    unsaid = []
    if run.is_baseline:
        if tokenizer is not None:
            raise UsageError(f"{run.path} is a baseline, which has no tokenizer", "no --tokenizer")
        return
    if run.tokenizer is None and tokenizer is None:
        unsaid.append("--tokenizer")
    if run.data is None and size is None:
        unsaid.append("--size")
    if unsaid:
        raise UsageError(
            f"{run.path} was imported, and does not say what {' and '.join(unsaid)} are",
            "give what its weights were trained with: the GMS authors' are for "
            "--tokenizer sd-vae --size 224",
        )


def _tokenizer_of(run: Run, name: str | None, device: torch.device) -> Tokenizer:
    """The tokenizer whose latents the model maps, checked by digest where the run says one."""
    trained = run.tokenizer
    if name is None:
        assert trained is not None, "_require_said has asked for it"
        return load_tokenizer_of(trained, device)
    tokenizer = load_tokenizer(name, device)
    if trained is not None and tokenizer.digest != trained["digest"]:
        raise ArtefactError(
            f"{run.path} was trained on latents of {trained['name']!r} ({trained['digest'][:12]}), "
            f"tokenizer {name!r} is {tokenizer.digest[:12]}",
            "leave --tokenizer out, or say where the run's own weights lie",
        )
    channels = run.description["model"]["latent_channels"]
    if tokenizer.latent_channels != channels:
        raise ArtefactError(
            f"{run.path} maps latents of {channels} channels, "
            f"tokenizer {name!r} has {tokenizer.latent_channels}",
            "--tokenizer the one that its weights were trained with",
        )
    return tokenizer
