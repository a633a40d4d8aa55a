"""What a run starts from in place of new weights: those of another run, told by their content."""

from pathlib import Path

from lmm.run.folder import Run, open_run
from lmm.settings import TrainSettings
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore


def open_origin(path: Path, store: LatentStore, settings: TrainSettings) -> Run:
    """The finished run whose weights one of a store and settings is to start from.

    It may be of any data and any tokenizer, as long as the models are of one size.

    raises  UsageError when its model is of another size, or none of latents; ArtefactError when
            there is none, it is not finished, or what it has seen is not known
    """
    origin = open_run(path)
    sizes = {"latent_channels": store.latent_shape[0], "width": settings.width}
    found = {name: origin.description["model"].get(name) for name in sizes}
    if origin.is_baseline or "class" in origin.description["model"]:
        raise UsageError(
            f"{path} holds no latent mapping model", "--init a run of gms-lmm train, or none"
        )
    if found != sizes:
        raise UsageError(
            f"the model of {path} has {_words(found)}, the one to be trained {_words(sizes)}",
            f"--width {found['width']}, and a store of latents with {found['latent_channels']} "
            "channels",
        )
    if origin.imported:
        raise ArtefactError(
            f"what the weights of {path} were trained on is not known, nor would it be what a run "
            "that starts from them has seen",
            "--init a run of gms-lmm train",
        )
    origin.summary()  # refuses a run that is not finished
    return origin


def origin_of(run: Run, store: LatentStore, settings: TrainSettings) -> Run | None:
    """What a run has started from; None where its weights were new.

    raises  as `open_origin`, and ArtefactError when the weights there are others by now
    """
    said = run.description.get("origin")
    if not said:
        return None
    origin = open_origin(Path(said["url"]), store, settings)
    if origin.weights_digest != said["weights_digest"]:
        raise ArtefactError(
            f"{run.path} started from weights of {origin.path} that are no longer there",
            "train it anew, with --init",
        )
    return origin


def _words(sizes: dict[str, int]) -> str:
    return f"{sizes['latent_channels']} latent channels and width {sizes['width']}"
