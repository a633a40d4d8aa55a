"""Whether a run can be scored on the images of a store or manifest: their size, their latents."""

from lmm.baseline.pixels import Images
from lmm.run import Run
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import LatentStore


def require_scorable(run: Run, images: Images, *, more: bool) -> None:
    """Raise an error unless a run can be scored on these images.

    more    whether the scores of its tokenizer or its student are wanted, too
    raises  UsageError for ceiling or student of a baseline; ArtefactError for images of another
            size, or other latents
    """
    if not run.is_baseline:
        assert isinstance(images, LatentStore), "open_images gives none but a baseline another"
        require_same_latents(run, images)
        return
    if more:
        raise UsageError(
            f"{run.path} maps pixels: it has neither a tokenizer's ceiling nor a student",
            "leave --ceiling and --student out",
        )
    _require_same_size(run, images, "evaluate on a store of the run's size, or its manifest")


def _require_same_size(run: Run, images: Images, fix: str) -> None:
    if run.data is not None and run.data["size"] != images.size:
        size = run.data["size"]
        raise ArtefactError(
            f"{run.path} was trained at {size} px, {images.url} is at {images.size} px", fix
        )


def require_same_latents(run: Run, store: LatentStore) -> None:
    """Raise ArtefactError unless the run's model maps latents of the kind the store holds."""
    fix = "evaluate on a store made with the tokenizer the run was trained on"
    trained, stored = run.tokenizer, store.tokenizer
    if trained is not None and trained["digest"] != stored["digest"]:
        raise ArtefactError(
            f"{run.path} was trained on latents of {trained['name']!r} ({trained['digest'][:12]}), "
            f"{store.url} holds those of {stored['name']!r} ({stored['digest'][:12]})",
            fix,
        )
    channels = run.description["model"]["latent_channels"]
    if channels != store.latent_shape[0]:
        raise ArtefactError(
            f"{run.path} maps latents of {channels} channels, "
            f"{store.url} has {store.latent_shape[0]}",
            fix,
        )
    _require_same_size(run, store, fix)
