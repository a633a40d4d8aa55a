"""A new image in, its mask at its own size out: tokenizer, LMM and decoder as one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from lmm.averaging import VIEWS, Average, View, average_greys, clean_view, drawn_views, turned_views
from lmm.baseline.network import grey_maps
from lmm.decoder import THRESHOLD, Grey, MaskDecoder, at_size
from lmm.encoder import image_latent
from lmm.latents import images_at_a_time, in_batches
from lmm.model import LatentMappingModel
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
from pipeline.tokenizer import Tokenizer


class Predictor(ABC):
    """A model with all that it needs: an image in, its mask out; what `load` gives.

    size       side of the square that it reads, px
    precision  arithmetic of the model, and of D: fp32 or bf16
    window     of 16-bit images, as the run's were read; None for their full range
    at_a_time  images that `evaluate` takes at a time on its device
    """

    def __init__(
        self, size: int, precision: str, device: torch.device, window: Window | None = None
    ) -> None:
        self.size = size
        self.precision = precision
        self.device = device
        self.window = window
        self.at_a_time = images_at_a_time(device)

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

    def grey_maps(self, images_u8: ImageU8, batch_size: int | None = None) -> Grey:
        """Grey maps of images that are already at the model's size.

        images_u8   (B, size, size, 3) uint8, 0…255
        batch_size  how many are computed at a time, always as many, so that a map does not depend
                    on B; None for as many as `evaluate` takes
        returns     (B, size, size) float32 in [0, 1]
        """
        pixels_u8 = torch.from_numpy(images_u8).to(self.device).permute(0, 3, 1, 2)
        maps = torch.cat(list(self._grey_maps(pixels_u8, batch_size or self.at_a_time)))
        grey: Grey = maps.cpu().numpy()
        return grey

    @abstractmethod
    def _grey_maps(self, pixels_u8: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
        """(B, 3, size, size) uint8 → (≤ count, size, size) float32 each, in batches of `count`."""


class LatentPredictor(Predictor):
    """E, LMM and D as one.

    precision    arithmetic of LMM and D
    e_precision  arithmetic of E; that of the store for the masks that `evaluate` scores
    others       models of other runs, whose grey maps are averaged with the model's
    average      over what of an image grey maps are averaged: none; views, drawn from its pixels;
                 dihedral, its eight flips and quarter turns
    views        how many are drawn, the clean one among them
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
        super().__init__(size, precision, tokenizer.device, window)
        self.model = model
        self.tokenizer = tokenizer
        self.decoder = MaskDecoder(tokenizer, precision)
        self.e_precision = e_precision
        self.others = others
        self.average = average
        self.views = views

    def _grey_maps(self, pixels_u8: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
        return in_batches(self._greys, pixels_u8, count)

    @torch.inference_mode()
    def _greys(self, pixels_u8: torch.Tensor) -> torch.Tensor:
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


class PixelPredictor(Predictor):
    """A baseline's network."""

    def __init__(
        self, network: nn.Module, size: int, precision: str, window: Window | None = None
    ) -> None:
        super().__init__(size, precision, next(network.parameters()).device, window)
        self.network = network

    def _grey_maps(self, pixels_u8: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
        return grey_maps(self.network, pixels_u8, self.precision, count)


def fault_of(grey: Grey, path: Path) -> ImageError | None:
    """What is wrong with a grey map, as a fault of its image; None when it is finite."""
    # A comparison with NaN is False: it would pass for background.
    if np.isfinite(grey).all():
        return None
    detail = "gives latents or a mask that are not finite"
    return ImageError(path, "not-finite", detail, "look at the image; --precision fp32")
