"""A contact sheet of a data set: clean image, mask contour, drawn views, tokenizer round trip."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image

from pipeline.augment import apply_views, draw_views
from pipeline.errors import UsageError
from pipeline.fidelity import decoded_pm1, mask_dsc, psnr_db
from pipeline.images import ImageU8, Mask
from pipeline.images.sheet import Tile, draw_sheet
from pipeline.manifest import Manifest
from pipeline.pixels import mask_pixels, pm1_of, to_grey, to_pm1, to_u8
from pipeline.samples import decode_sample
from pipeline.telling import Progress
from pipeline.tokenizer import Tokenizer, require_multiple

CONTOUR = (0, 230, 118)  # a green that neither ultrasound nor dermatoscopy has


@dataclass(frozen=True)
class RoundTrip:
    """What is left of one sample after D(E(·)); both are numbers to be read, not only looked at.

    image_pm1  (3, S, S) float32 in [-1, 1]; mask_01 (S, S) float32 in [0, 1]
    psnr_db    of the image; infinite when nothing is lost
    dsc        of the mask thresholded at 0.5, in [0, 1]; 1 when both are empty
    """

    image_pm1: torch.Tensor
    mask_01: torch.Tensor
    psnr_db: float
    dsc: float


@dataclass(frozen=True)
class Preview:
    """The sheet, and what is written on it: a row for each sample shown."""

    sheet: Image.Image
    rows: list[dict[str, Any]]


def draw_preview(
    manifest: Manifest,
    *,
    views: int = 4,
    samples: int = 8,
    seed: int = 0,
    size: int = 224,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Preview:
    """The sheet: a row for each of `samples` rows spread evenly over the manifest.

    views      K; the drawn ones are the very pixels that encode would see under this seed
    size       side of image and mask, px
    tokenizer  adds its round trip of image and mask, or None
    progress   called with (samples drawn, samples in all)
    raises     InputError when a file is not what was ingested; UsageError when `size` does not
               divide into the tokenizer's latent cells
    """
    if tokenizer:
        require_multiple(size, tokenizer)
    chosen = spread(len(manifest.frame), samples)
    rows: list[dict[str, Any]] = []
    tiles: list[list[Tile]] = []
    for row in manifest.frame[chosen].iter_rows(named=True):
        image_u8, mask = decode_sample(manifest, row, size)
        trip = round_trip(image_u8, mask, tokenizer) if tokenizer else None
        plan = draw_views([row["sample_id"]], views, seed)
        tiles.append(list(_tiles(row, image_u8, mask, plan, trip)))
        rows.append({"sample_id": row["sample_id"], "split": row["split"], **_numbers(trip)})
        if progress:
            progress(len(rows), len(chosen))
    return Preview(draw_sheet(tiles, size), rows)


def spread(rows: int, wanted: int) -> list[int]:
    """At most `wanted` places from the first to the last of `rows`, evenly spread, none twice."""
    if wanted < 1:
        raise UsageError(f"{wanted} samples make no sheet", "--samples 8")
    return sorted({round(place) for place in np.linspace(0, rows - 1, min(wanted, rows))})


def round_trip(image_u8: ImageU8, mask: Mask, tokenizer: Tokenizer) -> RoundTrip:
    """D(E(·)) of one image (S, S, 3) uint8 and its mask (S, S) bool, and what it cost."""
    image_pm1 = to_pm1(torch.from_numpy(image_u8).permute(2, 0, 1))
    truth = torch.from_numpy(mask)
    latent, _ = tokenizer.encode(torch.stack([image_pm1, mask_pixels(truth)]).to(tokenizer.device))
    decoded = decoded_pm1(tokenizer, latent).cpu()
    return RoundTrip(
        image_pm1=decoded[0],
        mask_01=to_grey(decoded[1]),
        psnr_db=float(psnr_db(decoded[:1], image_pm1[None])),
        dsc=float(mask_dsc(decoded[1:], truth[None])),
    )


def contour(mask: Mask) -> Mask:
    """The pixels of a mask that touch its background, (H, W) bool; the frame is no background."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _tiles(
    row: dict[str, Any], image_u8: ImageU8, mask: Mask, plan: pl.DataFrame, trip: RoundTrip | None
) -> Iterator[Tile]:
    yield Tile(f"{row['sample_id']} · {row['split']}", image_u8)
    share = f"mask, {100 * mask.mean():.1f} % of the image" if mask.any() else "mask is empty"
    yield Tile(share, _outlined(image_u8, mask))
    count = len(plan)
    pixels, masks = apply_views(
        torch.from_numpy(image_u8).permute(2, 0, 1).expand(count, -1, -1, -1),
        torch.from_numpy(mask).expand(count, -1, -1),
        plan,
    )
    for view in range(1, count):
        words = describe_view(plan.row(view, named=True))
        yield Tile(f"view {view}: {words}", _outlined(_picture(pixels[view]), masks[view].numpy()))
    if trip:
        yield Tile(f"image round trip, PSNR {trip.psnr_db:.1f} dB", _picture(trip.image_pm1))
        grey = _picture(pm1_of(trip.mask_01).expand(3, -1, -1))
        yield Tile(f"mask round trip, DSC {100 * trip.dsc:.1f} %", _outlined(grey, mask))


def describe_view(drawn: dict[str, Any]) -> str:
    """A row of the plan in a few words: what was flipped, turned, moved and recoloured."""
    flips = "h" * int(drawn["horizontal_flip"]) + "v" * int(drawn["vertical_flip"])
    degrees = (90 * drawn["quarter_turns"] + drawn["rotation_deg"] + 180) % 360 - 180
    words = {
        f"flip {flips}": bool(flips),
        f"{degrees:+.0f}°": degrees != 0,
        f"x{drawn['scale']:.2f}": drawn["scale"] != 1,
        f"{100 * drawn['shift_x']:+.0f} {100 * drawn['shift_y']:+.0f} %": drawn["shift_x"] != 0,
        "colour": drawn["saturation"] != 1,
    }
    return ", ".join(word for word, happened in words.items() if happened) or "as it is"


def _picture(image_pm1: torch.Tensor) -> ImageU8:
    """(3, S, S) float in [-1, 1] → (S, S, 3) uint8."""
    pixels: ImageU8 = to_u8(image_pm1).permute(1, 2, 0).contiguous().numpy()
    return pixels


def _outlined(image_u8: ImageU8, mask: Mask) -> ImageU8:
    outlined = image_u8.copy()
    outlined[contour(mask)] = CONTOUR
    return outlined


def _numbers(trip: RoundTrip | None) -> dict[str, Any]:
    if trip is None:
        return {}
    # JSON has no infinity.
    return {"dsc": trip.dsc, "psnr_db": trip.psnr_db if math.isfinite(trip.psnr_db) else None}
