"""A new image in, its mask at its own size out: tokenizer, LMM and decoder as one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lmm.averaging import VIEWS, Average, View, average_greys, clean_view, drawn_views, turned_views
from lmm.decoder import THRESHOLD, Grey, MaskDecoder, at_size
from lmm.encoder import image_latent
from lmm.latents import in_batches
from lmm.model import LatentMappingModel
from lmm.run import Run, open_run
from pipeline.device import choose_device
from pipeline.errors import ArtefactError, UsageError
from pipeline.images import (
    ImageError,
    ImageU8,
    Mask,
    Window,
    read_image,
    read_pillow,
    resize_image,
)
from pipeline.pixels import to_pm1
from pipeline.tokenizer import Tokenizer, load_tokenizer, load_tokenizer_of, require_multiple


class Predictor:
    """E, LMM and D as one: an image in, its mask out; what `load` gives.

    size          side of the square the tokenizer reads, px
    precision     arithmetic of LMM and D: fp32 or bf16
    e_precision   arithmetic of E; that of the store for the masks that `evaluate` scores
    window        of 16-bit images, as the store's were read; None for their full range
    others        models of other runs, whose grey maps are averaged with the model's
    average       over what of an image grey maps are averaged: none; views, drawn from its pixels;
                  dihedral, its eight flips and quarter turns
    views         how many are drawn, the clean one among them
    """

    def __init__(
        self,
        model: LatentMappingModel,
        tokenizer: Tokenizer,
        size: int,
        precision: str,
        e_precision: str,
        window: Window | None = None,
        *,
        others: Sequence[LatentMappingModel] = (),
        average: Average = "none",
        views: int = VIEWS,
    ) -> None:
        self.model = model
        self.others = others
        self.average = average
        self.views = views
        self.tokenizer = tokenizer
        self.decoder = MaskDecoder(tokenizer, precision)
        self.size = size
        self.precision = precision
        self.e_precision = e_precision
        self.window = window
        self.device = tokenizer.device

    def __call__(self, image: str | Path | Image.Image | ImageU8) -> Mask:
        """The mask of one image: its grey map (see `grey`) above 0.5.

        image    as for `grey`
        returns  (H, W) bool, the image's own size as displayed
        """
        return self.grey(image) > THRESHOLD

    def grey(self, image: str | Path | Image.Image | ImageU8) -> Grey:
        """The decoder's grey map of one image, carried to the image's own size by `at_size`.

        image    a path, read as at encoding (`pipeline.images.read_image`); a Pillow image, taken
                 likewise; or an array (H, W) grey or (H, W, 3) RGB uint8, 0…255, upright
        returns  (H, W) float32 in [0, 1], H and W as displayed: EXIF orientation is applied
        raises   ImageError for an image that cannot be read, or for which the model's output is
                 not finite; TypeError or ValueError for an array of another dtype or shape
        """
        image_u8 = self._pixels_of(image)
        grey = self.grey_maps(resize_image(image_u8, self.size)[None])[0]
        fault = fault_of(grey, Path(image) if isinstance(image, str | Path) else Path("image"))
        if fault:
            raise fault
        return at_size(grey, image_u8.shape[0], image_u8.shape[1])

    def _pixels_of(self, image: str | Path | Image.Image | ImageU8) -> ImageU8:
        if isinstance(image, str | Path):
            return read_image(Path(image), self.window)
        if isinstance(image, Image.Image):
            return read_pillow(image, self.window)
        if image.dtype != np.uint8:
            raise TypeError(f"the image is {image.dtype}, expected uint8, 0…255")
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"the image has shape {image.shape}, expected (H, W) or (H, W, 3)")
        return image

    @torch.inference_mode()
    def grey_maps(self, images_u8: ImageU8, batch_size: int | None = None) -> Grey:
        """Grey maps of images that are already at the model's size.

        images_u8   (B, size, size, 3) uint8, 0…255
        batch_size  how many are computed at a time, always as many, so that a map does not depend
                    on B; None for as many as `evaluate` takes
        returns     (B, size, size) float32 in [0, 1]
        """
        pixels_u8 = torch.from_numpy(images_u8).to(self.device).permute(0, 3, 1, 2)
        maps = in_batches(self._grey_maps, pixels_u8, batch_size or self.decoder.at_a_time)
        grey: Grey = torch.cat(list(maps)).cpu().numpy()
        return grey

    def _grey_maps(self, pixels_u8: torch.Tensor) -> torch.Tensor:
        models = (self.model, *self.others)
        return average_greys(models, self.decoder, self._views(pixels_u8))[:, 0]

    def _views(self, pixels_u8: torch.Tensor) -> Iterable[View]:
        if self.average == "dihedral":
            return turned_views(pixels_u8, self._image_latent)
        if self.average == "views":
            return drawn_views(pixels_u8, self.views, self._image_latent)
        return [clean_view(self._image_latent(to_pm1(pixels_u8)))]

    def _image_latent(self, pixels_pm1: torch.Tensor) -> torch.Tensor:
        return image_latent(self.tokenizer, pixels_pm1, self.e_precision)


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
    """A run with its tokenizer, ready for images.

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
    average    none, views or dihedral; see `Predictor`
    views      how many `views` draws of an image, the clean one among them
    raises     ArtefactError when there is no run, the tokenizer is not the one whose latents it
               maps, or one of the others reads images otherwise; UsageError when tokenizer or size
               are missing, or contradict the run
    """
    run, *more = (one if isinstance(one, Run) else open_run(Path(one)) for one in (run, *others))
    for other in more:
        _require_alike(run, other)
    _require_said(run, tokenizer, size)
    side = _size_of(run, size)
    chosen = choose_device(device)
    loaded = _tokenizer_of(run, tokenizer, chosen)
    require_multiple(side, loaded)
    ours, of_e = ("fp32", run.e_precision) if precision == "auto" else (precision, precision)
    return Predictor(
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


def fault_of(grey: Grey, path: Path) -> ImageError | None:
    """What is wrong with a grey map, as a fault of its image; None when it is finite."""
    # A comparison with NaN is False: it would pass for background.
    if np.isfinite(grey).all():
        return None
    detail = "gives latents or a mask that are not finite"
    return ImageError(path, "not-finite", detail, "look at the image; --precision fp32")


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
    own: dict[str, Any] | None = run.description["store"]
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
    if run.tokenizer is None and tokenizer is None:
        unsaid.append("--tokenizer")
    if run.description["store"] is None and size is None:
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
