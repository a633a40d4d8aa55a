"""New images in, masks at their own size out: tokenizer, LMM and decoder loaded once, as one."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lmm.checkpoint import Run, open_run
from lmm.decoder import THRESHOLD, MaskDecoder
from lmm.latents import model_latent
from lmm.model import LatentMappingModel
from pipeline.ahead import map_ahead
from pipeline.cells import is_out_of_memory
from pipeline.device import choose_device, choose_precision
from pipeline.errors import ArtefactError, UsageError
from pipeline.image_files import require_distinct_stems
from pipeline.images import ImageError, ImageU8, Mask, read_image, read_pillow, resize_image
from pipeline.tokenizer import Tokenizer, load_tokenizer, load_tokenizer_of, require_multiple

Grey = NDArray[np.float32]

# Images at a time: a GPU wants many; a CPU is fastest with what fits its cache.
BATCH = {"cuda": 64, "cpu": 2}


class Predictor:
    """E, LMM and D as one: an image in, its mask out; what `load` gives.

    size       side of the square the tokenizer reads, px
    precision  arithmetic of all three: fp32 or bf16
    """

    def __init__(
        self, model: LatentMappingModel, tokenizer: Tokenizer, size: int, precision: str
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.decoder = MaskDecoder(tokenizer, precision)
        self.size = size
        self.precision = precision
        self.device = tokenizer.device

    def __call__(self, image: str | Path | Image.Image | ImageU8) -> Mask:
        """The mask of one image: its grey map (see `grey`) above 0.5.

        image    as for `grey`
        returns  (H, W) bool, the image's own size as displayed
        """
        return self.grey(image) > THRESHOLD

    def grey(self, image: str | Path | Image.Image | ImageU8) -> Grey:
        """The decoder's grey map of one image, carried to the image's own size.

        The map of size × size px is interpolated bilinearly (antialiased where it shrinks), and
        only then compared with a threshold: a mask's contour then has no stairs of the map's
        pixels.

        image    a path, read as at encoding (`pipeline.images.read_image`); a Pillow image, taken
                 likewise; or an array (H, W) grey or (H, W, 3) RGB uint8, 0…255, upright
        returns  (H, W) float32 in [0, 1], H and W as displayed: EXIF orientation is applied
        raises   ImageError for an image that cannot be read, or for which the model's output is
                 not finite; TypeError or ValueError for an array of another dtype or shape
        """
        image_u8 = _pixels_of(image)
        grey = self.grey_maps(resize_image(image_u8, self.size)[None])[0]
        fault = _fault_of(grey, Path(image) if isinstance(image, str | Path) else Path("image"))
        if fault:
            raise fault
        return _at_size(grey, image_u8.shape[0], image_u8.shape[1])

    @torch.inference_mode()
    def grey_maps(self, images_u8: ImageU8) -> Grey:
        """Grey maps of images that are already at the model's size.

        images_u8  (B, size, size, 3) uint8, 0…255
        returns    (B, size, size) float32 in [0, 1]
        """
        tokenizer, precision = self.tokenizer, self.precision
        pixels_u8 = torch.from_numpy(images_u8).to(self.device).permute(0, 3, 1, 2)
        mean, _ = tokenizer.encode(pixels_u8.float() / 255.0 * 2.0 - 1.0, precision)
        # Through float16, as latents lie in a store: what the LMM was trained on.
        z_image = model_latent(mean.half(), tokenizer.scaling_factor, tokenizer.shift_factor)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            z_mask_hat = self.model(z_image)["out"]
        grey: Grey = self.decoder(z_mask_hat.float()).cpu().numpy()
        return grey


@dataclass(frozen=True)
class Prediction:
    """What `predict` did.

    n        masks written
    seconds  from the first image read to the last mask written
    skipped  the images that have no mask, each with its fault
    """

    n: int
    seconds: float
    skipped: list[ImageError]

    @property
    def images_per_s(self) -> float:
        return self.n / self.seconds


def load(
    run: str | Path | Run,
    *,
    tokenizer: str | None = None,
    size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
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
    precision  fp32, bf16, or auto: bf16 where the hardware computes in it
    raises     ArtefactError when there is no run, or the tokenizer is not the one whose latents it
               maps; UsageError when tokenizer or size are missing, or contradict the run
    """
    run = run if isinstance(run, Run) else open_run(Path(run))
    _require_said(run, tokenizer, size)
    side = _size_of(run, size)
    chosen = choose_device(device)
    loaded = _tokenizer_of(run, tokenizer, chosen)
    require_multiple(side, loaded)
    return Predictor(run.model(chosen), loaded, side, choose_precision(precision, chosen))


def predict(
    model: Predictor,
    images: Sequence[Path],
    out: Path,
    *,
    grey: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Write the mask of every image as OUT/STEM.png, 0 and 255, at the image's own size.

    Images are read and masks written in threads beside the device. An image that cannot be read
    is skipped and named in the result; the masks of the others are written all the same. A mask
    that exists is replaced, each as a whole.

    grey        also write OUT/grey/STEM.png: the grey map at the same size, [0, 1] as 0…255
    batch_size  images at a time; None takes one that suits the device
    progress    called with (images done, images in all)
    raises      InputError when two images have the same stem; UsageError when a mask would replace
                an image or cannot be written, or a batch does not fit into memory
    """
    require_distinct_stems(images)
    folders = [out, out / "grey"] if grey else [out]
    _require_apart(images, folders)
    _make(folders)
    started = time.monotonic()
    skipped: list[ImageError] = []
    pictures = _sound(map_ahead(partial(_read, size=model.size), images), skipped)
    batches = _batches(pictures, batch_size or BATCH.get(model.device.type, 8))
    maps = _sound(_grey_maps(model, batches), skipped)
    n = 0
    for n, _ in enumerate(map_ahead(partial(_write, folders=folders), maps), 1):
        if progress:
            progress(n + len(skipped), len(images))
    if progress and skipped:
        progress(len(images), len(images))
    return Prediction(n, time.monotonic() - started, skipped)


@dataclass(frozen=True)
class _Picture:
    """An image on its way: its own size, and its pixels or grey map at the model's size."""

    path: Path
    height: int
    width: int
    pixels: NDArray[Any]


def _read(path: Path, size: int) -> _Picture | ImageError:
    try:
        image_u8 = read_image(path)
    except ImageError as fault:
        return fault
    height, width, _ = image_u8.shape
    return _Picture(path, height, width, resize_image(image_u8, size))


def _sound(
    results: Iterable[_Picture | ImageError], skipped: list[ImageError]
) -> Iterator[_Picture]:
    """The pictures among the results; the faults go into `skipped`."""
    for result in results:
        if isinstance(result, ImageError):
            skipped.append(result)
        else:
            yield result


def _batches(pictures: Iterator[_Picture], count: int) -> Iterator[list[_Picture]]:
    while batch := list(islice(pictures, count)):
        yield batch


def _grey_maps(
    model: Predictor, batches: Iterable[list[_Picture]]
) -> Iterator[_Picture | ImageError]:
    for batch in batches:
        try:
            maps = model.grey_maps(np.stack([one.pixels for one in batch]))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UsageError(
                f"{len(batch)} images at a time are more than the memory of {model.device}",
                "a smaller --batch-size, --precision bf16 or --device cpu",
            ) from error
        for one, grey in zip(batch, maps, strict=True):
            yield _fault_of(grey, one.path) or replace(one, pixels=grey)


def _fault_of(grey: Grey, path: Path) -> ImageError | None:
    # A comparison with NaN is False: it would pass for background.
    if np.isfinite(grey).all():
        return None
    detail = "gives latents or a mask that are not finite"
    return ImageError(path, "not-finite", detail, "look at the image; --precision fp32")


def _write(one: _Picture, folders: list[Path]) -> None:
    """The mask into the first folder, the grey map into the second where there is one."""
    grey = _at_size(one.pixels, one.height, one.width)
    levels = [(grey > THRESHOLD) * np.uint8(255), np.rint(grey * 255).astype(np.uint8)]
    for folder, pixels_u8 in zip(folders, levels, strict=False):
        path = folder / f"{one.path.stem}.png"
        unfinished = folder / f"{path.name}.partial"
        try:
            Image.fromarray(pixels_u8).save(unfinished, "png")
            unfinished.replace(path)
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error.strerror}", "-o a folder that can be written"
            ) from error


def _at_size(grey: Grey, height: int, width: int) -> Grey:
    # The filter by which the image was resized, so that both sides agree on where pixels lie.
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized)


def _pixels_of(image: str | Path | Image.Image | ImageU8) -> ImageU8:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return read_pillow(image)
    if image.dtype != np.uint8:
        raise TypeError(f"the image is {image.dtype}, expected uint8, 0…255")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"the image has shape {image.shape}, expected (H, W) or (H, W, 3)")
    return image


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


def _require_apart(images: Sequence[Path], folders: Sequence[Path]) -> None:
    """Raise UsageError when a mask or grey map would be written over one of the images."""
    homes = {folder.resolve() for folder in folders}
    for path in images:
        if path.parent.resolve() in homes and path.name == f"{path.stem}.png":
            raise UsageError(f"the mask of {path} would replace it", "-o another folder")


def _make(folders: Sequence[Path]) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be made: {error.strerror}", "-o a folder that can be written"
            ) from error
