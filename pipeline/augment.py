"""Views of a sample: drawn as a table of numbers, then applied to image and mask together."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import kornia.color
import kornia.enhance
import kornia.geometry.transform
import numpy as np
import polars as pl
import torch

from pipeline.pixels import pm1_of, to_01


@dataclass(frozen=True)
class ViewPolicy:
    """How views 1…K−1 are drawn; view 0 is always the clean image.

    The numbers are those of the GMS authors' training code (Huo et al. 2025): horizontal flip,
    vertical flip and quarter turns half of the time each, colour jitter of ±0.1 in a fifth of the
    views, and shift ±15 %, scale ±10 %, rotation ±20° together in two fifths.
    """

    p_horizontal_flip: float = 0.5
    p_vertical_flip: float = 0.5
    p_quarter_turns: float = 0.5
    p_affine: float = 0.4
    shift: float = 0.15  # of the side, each way
    scale: float = 0.10  # of the size, each way
    rotation_deg: float = 20.0  # each way
    p_colour: float = 0.2
    hue: float = 0.1  # of a full turn, each way
    saturation: float = 0.1  # of the value, each way
    brightness: float = 0.1  # of the value V in HSV, each way
    contrast: float = 0.1  # of the distance from the mean grey, each way


POLICY = ViewPolicy()

# The columns of the plan that decide a view's pixels, in the order they enter its key.
PARAMETERS = (
    "horizontal_flip",
    "vertical_flip",
    "quarter_turns",
    "shift_x",
    "shift_y",
    "scale",
    "rotation_deg",
    "hue",
    "saturation",
    "brightness",
    "contrast",
)
_DRAWS = 14


def draw_views(
    sample_ids: Sequence[str],
    views: int | Sequence[int],
    seed: int = 0,
    policy: ViewPolicy = POLICY,
) -> pl.DataFrame:
    """The plan: one row a (sample, view), with every number that the view's pixels depend on.

    A row is a pure function of (seed, sample_id, view): its uniforms are the SHAKE-256 digest of
    those three, so the plan is the same on any machine, in any order, at any batch size, and a
    view's row does not change when other samples or more views are drawn.

    views    how many, from 0 on; or the numbers of those to draw
    returns  sample_id String, view Int32, horizontal_flip and vertical_flip 0/1, quarter_turns
             0…3 (counter-clockwise), shift_x and shift_y in sides, scale as a factor, rotation_deg
             in degrees counter-clockwise, hue in turns, saturation, brightness and contrast as
             factors; all parameters Float64, samples slowest
    source   Huo et al. 2025 for the distribution; see ViewPolicy
    """
    chosen = range(views) if isinstance(views, int) else views
    u = _uniforms(sample_ids, chosen, seed)
    view = np.tile(np.asarray(chosen, np.int32), len(sample_ids))

    affine = u[:, 4] < policy.p_affine
    colour = u[:, 9] < policy.p_colour

    def centred(column: int, reach: float, drawn: np.ndarray) -> np.ndarray:
        return np.where(drawn, (2.0 * u[:, column] - 1.0) * reach, 0.0)

    drawn = np.column_stack(
        [
            u[:, 0] < policy.p_horizontal_flip,
            u[:, 1] < policy.p_vertical_flip,
            np.where(u[:, 2] < policy.p_quarter_turns, np.floor(4.0 * u[:, 3]), 0.0),
            centred(5, policy.shift, affine),
            centred(6, policy.shift, affine),
            1.0 + centred(7, policy.scale, affine),
            centred(8, policy.rotation_deg, affine),
            centred(10, policy.hue, colour),
            1.0 + centred(11, policy.saturation, colour),
            1.0 + centred(12, policy.brightness, colour),
            1.0 + centred(13, policy.contrast, colour),
        ]
    ).astype(np.float64)
    clean = np.array([0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1], dtype=np.float64)
    drawn[view == 0] = clean
    return pl.DataFrame(
        {
            "sample_id": pl.Series(sample_ids, dtype=pl.String).gather(
                np.repeat(np.arange(len(sample_ids)), len(chosen))
            ),
            "view": view,
            **{name: drawn[:, i] for i, name in enumerate(PARAMETERS)},
        }
    )


def _uniforms(sample_ids: Sequence[str], views: Sequence[int], seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [samples · views, _DRAWS]; 0 for view 0, not drawn."""
    clean = bytes(8 * _DRAWS)
    digests = b"".join(
        hashlib.shake_256(f"{seed}|{view}|{sample_id}".encode()).digest(8 * _DRAWS)
        if view
        else clean
        for sample_id in sample_ids
        for view in views
    )
    words = np.frombuffer(digests, dtype="<u8").reshape(-1, _DRAWS)
    # 53 bits are what a float64 in [0, 1) holds exactly.
    return (words >> np.uint64(11)) * 2.0**-53


def apply_views(
    image_u8: torch.Tensor, mask: torch.Tensor, plan: pl.DataFrame
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of the planned views, as the tokenizer wants them; row i of the plan is for cell i.

    One affine warp carries the whole geometry, bilinear on the image and nearest on the mask, with
    mirrored borders; colour then changes on the image alone. Rows without geometry are not
    resampled, so view 0 is the clean image to the bit.

    image_u8  (B, 3, S, S) uint8, 0…255
    mask      (B, S, S) bool
    returns   image (B, 3, S, S) float32 in [-1, 1]; mask (B, S, S) bool
    """
    parameters = plan.select(PARAMETERS).to_numpy()
    image_01 = to_01(image_u8)

    moved = _moved(parameters)
    if moved.size:
        rows = torch.as_tensor(moved, device=image_u8.device)
        size = (mask.shape[-2], mask.shape[-1])
        # Composed in float64 on the host, so that quarter turns land on pixel centres.
        matrices = affine_matrices(parameters[moved], size[0])
        matrix = torch.as_tensor(matrices, dtype=torch.float32, device=image_u8.device)
        warp = kornia.geometry.transform.warp_affine
        image_01[rows] = warp(
            image_01[rows], matrix, size, mode="bilinear", padding_mode="reflection"
        )
        mask = mask.clone()
        mask[rows] = (
            warp(
                mask[rows].unsqueeze(1).to(torch.float32),
                matrix,
                size,
                mode="nearest",
                padding_mode="reflection",
            ).squeeze(1)
            > 0.5
        )

    coloured = np.flatnonzero((parameters[:, 7:] != [0, 1, 1, 1]).any(axis=1))
    if coloured.size:
        rows = torch.as_tensor(coloured, device=image_u8.device)
        change = torch.as_tensor(parameters[coloured, 7:], dtype=torch.float32).to(image_01.device)
        image_01[rows] = _jitter(image_01[rows], change)
    return pm1_of(image_01), mask


def undo_views(maps: torch.Tensor, plan: pl.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps of the planned views, carried back to the clean image; row i of the plan is for map i.

    The inverse of the affine warp of `apply_views`, bilinear. What a view did not see of the clean
    image weighs nothing, so that its mirrored borders are never read. Rows without geometry are not
    resampled.

    maps     (B, S, S) float
    returns  (B, S, S) float32: the map at each pixel of the clean image, times its weight; and the
             weights, 1 where the view saw the pixel and 0 where it did not, between them within a
             pixel of the view's border
    """
    parameters = plan.select(PARAMETERS).to_numpy()
    both = torch.stack([maps.float(), torch.ones_like(maps, dtype=torch.float32)], dim=1)
    moved = _moved(parameters)
    if moved.size:
        rows = torch.as_tensor(moved, device=maps.device)
        size = (maps.shape[-2], maps.shape[-1])
        forth = affine_matrices(parameters[moved], size[0])
        inverse = np.linalg.inv(forth[:, :, :2])
        matrix = np.concatenate([inverse, -inverse @ forth[:, :, 2:]], axis=2)
        both[rows] = kornia.geometry.transform.warp_affine(
            both[rows],
            torch.as_tensor(matrix, dtype=torch.float32, device=maps.device),
            size,
            mode="bilinear",
            padding_mode="zeros",
        )
    weighted, weights = both.unbind(dim=1)
    return weighted, weights


def _moved(parameters: np.ndarray) -> np.ndarray:
    """The rows of a plan whose views are other than their images in geometry."""
    moved: np.ndarray = np.flatnonzero((parameters[:, :7] != [0, 0, 0, 0, 0, 1, 0]).any(axis=1))
    return moved


def affine_matrices(parameters: np.ndarray, size: int) -> np.ndarray:
    """Source → destination pixel affines about the image centre, float64 [n, 2, 3].

    parameters  float64 [n, ≥7], columns as in PARAMETERS; y points down, so a counter-clockwise
                turn as seen on screen is [[cos, sin], [−sin, cos]]
    """
    flip_x, flip_y, turns, shift_x, shift_y, scale, rotation_deg = parameters.T[:7]
    # Quarter turns apart from the free angle: their cosines are exact integers.
    quarter_cos = np.array([1, 0, -1, 0])[turns.astype(int)]
    quarter_sin = np.array([0, 1, 0, -1])[turns.astype(int)]
    angle = np.deg2rad(rotation_deg)
    cos = (np.cos(angle) * quarter_cos - np.sin(angle) * quarter_sin) * scale
    sin = (np.sin(angle) * quarter_cos + np.cos(angle) * quarter_sin) * scale
    mirror_x, mirror_y = 1 - 2 * flip_x, 1 - 2 * flip_y

    centre = (size - 1) / 2
    linear = np.stack(
        [np.stack([cos * mirror_x, sin * mirror_y]), np.stack([-sin * mirror_x, cos * mirror_y])]
    ).transpose(2, 0, 1)
    shift = np.stack([shift_x, shift_y], axis=1) * size
    offset = centre + shift - linear.sum(axis=2) * centre
    return np.concatenate([linear, offset[:, :, None]], axis=2)


def _jitter(image_01: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Contrast scaled, then in HSV hue turned, saturation and brightness scaled.

    change  (B, 4): turns of the hue, factors of saturation, brightness and contrast
    """
    hue, saturation, brightness, contrast = change[:, :, None, None].unbind(dim=1)
    contrasted = kornia.enhance.adjust_contrast_with_mean_subtraction(image_01, contrast[:, None])
    h, s, v = kornia.color.rgb_to_hsv(contrasted).unbind(dim=1)
    h = (h + 2 * math.pi * hue) % (2 * math.pi)
    jittered = torch.stack([h, (s * saturation).clamp(0, 1), (v * brightness).clamp(0, 1)], dim=1)
    rgb: torch.Tensor = kornia.color.hsv_to_rgb(jittered)
    return rgb
