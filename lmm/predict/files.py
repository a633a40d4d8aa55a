"""Image files in, mask files out: read ahead of the device, written behind it, each named once."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from lmm.confidence import expected_dsc
from lmm.decoder import THRESHOLD, at_size
from lmm.predict.predictor import Predictor, fault_of
from pipeline.ahead import map_ahead
from pipeline.device import is_out_of_memory
from pipeline.errors import UsageError
from pipeline.files import replacing
from pipeline.images import ImageError, Window, read_image, resize_image
from pipeline.images.files import require_distinct_stems
from pipeline.telling import Progress


@dataclass(frozen=True)
class Prediction:
    """What `predict_files` did.

    n        masks written
    seconds  from the first image read to the last mask written
    skipped  the images that have no mask, each with its fault
    confidence  of each image that has a mask: the DSC that its grey map expects, in order
    """

    n: int
    seconds: float
    skipped: list[ImageError]
    confidence: dict[Path, float]

    @property
    def images_per_s(self) -> float:
        """Masks a second, reading and writing included."""
        return self.n / self.seconds


def predict_files(
    model: Predictor,
    images: Sequence[Path],
    out: Path,
    *,
    grey: bool = False,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Write the mask of every image as OUT/STEM.png, 0 and 255, at the image's own size.

    Images are read and masks written in threads beside the device. An image that cannot be read
    is skipped and named in the result; the masks of the others are written all the same. A mask
    that exists is replaced, each as a whole.

    grey        also write OUT/grey/STEM.png: the grey map at the same size, [0, 1] as 0…255
    batch_size  images at a time, also where fewer are left; None takes as many as `evaluate` does,
                and another number may change the last bits of a grey map
    progress    called with (images done, images in all)
    raises      InputError when two images have the same stem; UsageError when a mask would replace
                an image or cannot be written, or a batch does not fit into memory
    """
    require_distinct_stems(images)
    grey_folder = out / "grey" if grey else None
    for folder in filter(None, (out, grey_folder)):
        _require_apart(images, folder)
        _make(folder)
    started = time.monotonic()
    skipped: list[ImageError] = []
    pictures = _sound(
        map_ahead(partial(_read, size=model.size, window=model.window), images), skipped
    )
    batches = _batches(pictures, batch_size or model.at_a_time)
    maps = _sound(_grey_maps(model, batches, batch_size), skipped)
    confidence = {}
    for one, sure in map_ahead(partial(_write, out=out, grey_folder=grey_folder), maps):
        confidence[one.path] = sure
        if progress:
            progress(len(confidence) + len(skipped), len(images))
    if progress and skipped:
        progress(len(images), len(images))
    return Prediction(len(confidence), time.monotonic() - started, skipped, confidence)


def write_confidence(done: Prediction, path: Path) -> None:
    """Write a CSV file with the columns image and confidence, in order of the images.

    raises  UsageError when it cannot be written
    """
    rows = [(str(image), sure) for image, sure in done.confidence.items()]
    table = pl.DataFrame(rows, {"image": pl.String, "confidence": pl.Float64}, orient="row")
    try:
        with replacing(path) as partial:
            table.write_csv(partial)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}", "--confidence another file"
        ) from error


@dataclass(frozen=True)
class _Picture:
    """An image on its way: its own size, and its pixels or grey map at the model's size."""

    path: Path
    height: int
    width: int
    pixels: NDArray[Any]


def _read(path: Path, size: int, window: Window | None) -> _Picture | ImageError:
    try:
        image_u8 = read_image(path, window)
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
    model: Predictor, batches: Iterable[list[_Picture]], batch_size: int | None
) -> Iterator[_Picture | ImageError]:
    for batch in batches:
        try:
            maps = model.grey_maps(np.stack([one.pixels for one in batch]), batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UsageError(
                f"{len(batch)} images at a time are more than the memory of {model.device}",
                "a smaller --batch-size, --precision bf16 or --device cpu",
            ) from error
        for one, grey in zip(batch, maps, strict=True):
            yield fault_of(grey, one.path) or replace(one, pixels=grey)


def _write(one: _Picture, out: Path, grey_folder: Path | None) -> tuple[_Picture, float]:
    """Write the files of a grey map; returns it with its confidence."""
    grey, name = at_size(one.pixels, one.height, one.width), f"{one.path.stem}.png"
    _save((grey > THRESHOLD) * np.uint8(255), out / name)
    if grey_folder:
        _save(np.rint(grey * 255).astype(np.uint8), grey_folder / name)
    return one, float(expected_dsc(one.pixels[None])[0])


def _save(pixels_u8: NDArray[np.uint8], path: Path) -> None:
    try:
        with replacing(path) as partial:
            Image.fromarray(pixels_u8).save(partial, "png")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}", "-o a folder with room for it"
        ) from error


def _require_apart(images: Sequence[Path], folder: Path) -> None:
    """Raise UsageError when a mask or grey map would be written over one of the images."""
    home = folder.resolve()
    for path in images:
        if path.parent.resolve() == home and path.name == f"{path.stem}.png":
            raise UsageError(f"the mask of {path} would replace it", "-o another folder")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be made: {error.strerror}", "-o a folder that can be written"
        ) from error
