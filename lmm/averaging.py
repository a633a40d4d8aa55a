"""Averaging of grey maps: over views or turns of an image, carried back to it, and over runs."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import polars as pl
import torch
from torch import Tensor, nn

from lmm.decoder import MaskDecoder
from pipeline.augment import apply_views, draw_views, undo_views
from pipeline.device import autocast
from pipeline.pixels import to_pm1

Average: TypeAlias = Literal["none", "views", "dihedral"]
VIEWS = 8  # of a new image, the clean one among them
# The symmetries of a square: mirrored or not, then quarter turns; first the image as it is.
TURNS = tuple((mirrored, quarters) for mirrored in (False, True) for quarters in range(4))

Encode: TypeAlias = Callable[[Tensor], Tensor]
Back: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class View:
    """One view of some images, and the way back.

    z_image  (B, C, h, w) float32, scaled: what a model reads of it
    back     its grey maps (B, S, S) → the same in the clean images' frame, times their weights; and
             the weights, 0 where the view did not see a pixel
    """

    z_image: Tensor
    back: Back


def average_greys(
    models: Sequence[nn.Module], decoder: MaskDecoder, views: Iterable[View]
) -> Tensor:
    """The mean grey map of some images over views and models, and what each model says alone.

    Views are weighted by what they saw of a pixel, models are equal.

    models   z_image → {"out": Ẑ_M, …}, both (B, C, h, w) and scaled
    views    of the same images; the first is the clean one, which sees every pixel
    returns  (B, 1 + models, S, S) float32 in [0, 1]: the mean; then each model's map of the clean
             view. Means of equal maps are these maps, to the bit
    """
    means = [_RunningMean() for _ in models]
    alone: list[Tensor] = []
    for view in views:
        for mean, model in zip(means, models, strict=True):
            grey = _grey_of(model, decoder, view.z_image)
            mean.add(*view.back(grey))
            if len(alone) < len(models):
                alone.append(grey)
    whole = _RunningMean()
    for mean in means:
        whole.add(mean.value, torch.ones_like(mean.value))
    return torch.stack([whole.value, *alone], dim=1)


def _grey_of(model: nn.Module, decoder: MaskDecoder, z_image: Tensor) -> Tensor:
    with autocast(z_image.device, decoder.precision):
        z_mask_hat = model(z_image)["out"]
    return decoder(z_mask_hat.float())


class _RunningMean:
    """A weighted mean, moved by what each map differs from it: equal maps leave it to the bit."""

    value: Tensor
    _weight: Tensor | None = None

    def add(self, weighted: Tensor, weight: Tensor) -> None:
        if self._weight is None:
            self.value, self._weight = weighted, weight
            return
        self._weight = self._weight + weight
        self.value = self.value + (weighted - weight * self.value) / self._weight


def clean_view(z_image: Tensor) -> View:
    """The images as they are: their maps are in place."""
    return View(z_image, _in_place)


def stored_views(z_images: Iterable[Tensor], plans: Sequence[pl.DataFrame]) -> Iterator[View]:
    """Views that are encoded already, each with the rows of its plan in the order of the images."""
    for z_image, plan in zip(z_images, plans, strict=True):
        yield View(z_image, partial(undo_views, plan=plan))


def drawn_views(images_u8: Tensor, count: int, encode: Encode) -> Iterator[View]:
    """Views of new images, drawn from each image's pixels: the same whatever it is called.

    images_u8  (B, 3, S, S) uint8, 0…255
    count      K, the clean view among them
    encode     pixels (B, 3, S, S) float32 in [-1, 1] → z_image
    """
    ids = [hashlib.sha256(one.tobytes()).hexdigest() for one in images_u8.cpu().numpy()]
    plan = draw_views(ids, count)
    masks = torch.zeros_like(images_u8[:, 0], dtype=torch.bool)
    for view in range(count):
        rows = plan.filter(view=view)
        yield View(encode(apply_views(images_u8, masks, rows)[0]), partial(undo_views, plan=rows))


def turned_views(images_u8: Tensor, encode: Encode) -> Iterator[View]:
    """The eight flips and quarter turns of images, each encoded: a latent cannot be turned.

    images_u8, encode  as in `drawn_views`
    """
    pixels_pm1 = to_pm1(images_u8)
    for turn in TURNS:
        yield View(encode(turned(pixels_pm1, *turn)), partial(_turned_back, turn=turn))


def turned(maps: Tensor, mirrored: bool, quarters: int) -> Tensor:
    """Maps (…, S, S) mirrored left to right where so, then turned counter-clockwise by quarters."""
    return torch.rot90(maps.flip(-1) if mirrored else maps, quarters, (-2, -1))


def _turned_back(maps: Tensor, turn: tuple[bool, int]) -> tuple[Tensor, Tensor]:
    mirrored, quarters = turn
    upright = torch.rot90(maps, -quarters, (-2, -1))
    return _in_place(upright.flip(-1) if mirrored else upright)


def _in_place(maps: Tensor) -> tuple[Tensor, Tensor]:
    return maps, torch.ones_like(maps)
