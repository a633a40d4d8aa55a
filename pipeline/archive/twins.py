"""Twins: images of one picture, saved again, resized, cropped, turned, or a sweep's next frame."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.ahead import map_ahead
from pipeline.images import Deep, ImageU8, stretch
from pipeline.telling import Progress

# On BUSI, GlaS and HAM10000 no pair at 0.7 or above is of two scenes, and copies that were saved
# again, resized, lit otherwise, cropped or turned stay above 0.8: tests/pipeline/archive.
THRESHOLD = 0.75
THUMBNAIL_PX = 48

_COARSE_PX = 16
_NEIGHBOURS = 8  # pairs looked at closely for each image: keeps time and memory linear in them
_FLOOR = 0.3  # coarse correlation below which no pair is looked at closely
_ROWS = 256  # images at a time against all others
_PAIRS = 256  # pairs at a time that are aligned, in each thread
_DETAIL_PX = 2.0  # deviation of the Gaussian above which structure is taken for light, not detail
_ENVELOPE_PX = 3.0  # and of the one that averages the detail's power
_NOISE = 2.0  # grey levels of detail that count for nothing: rounding and compression
_REACH = 0.16  # largest shift and stretch of an alignment, in half image sides
_STEPS = (8, 4)  # of alignment: at half the thumbnail's size, and at its own
_PROMISING = 0.4  # correlation at half size below which a pair is not aligned any further

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Thumbnail = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Twin:
    """Two samples whose images are alike; first < second.

    turn         how the first is to be turned to lie on the second, as `turned` does
    correlation  of their detail once aligned, THRESHOLD to 1
    """

    first: str
    second: str
    turn: int
    correlation: float


def thumbnail(pixels: ImageU8 | Deep) -> Thumbnail:
    """What `find_twins` knows of an image: (48, 48) uint8 grey, each pixel the mean of its area.

    pixels    (H, W, 3) uint8, or (H, W) uint16, which is taken by its own range
    """
    image_u8 = stretch(pixels, (0, max(int(pixels.max()), 1)))
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    grey = Image.fromarray(image_u8).convert("L").resize(size, Image.Resampling.BOX)
    return np.array(grey)


def turned(image: npt.NDArray[np.generic], turn: int) -> npt.NDArray[np.generic]:
    """An image (H, W, …) in one of its eight positions: quarter turns 0…3, and then mirrored."""
    quarters = np.rot90(image, turn % 4)
    return quarters[:, ::-1] if turn > 3 else quarters


def find_twins(
    thumbnail_of: Mapping[str, Thumbnail],
    *,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
) -> list[Twin]:
    """Pairs whose detail correlates by `threshold` or more in one of eight positions, best first.

    Detail is what is left of a thumbnail without its local mean, divided by its local strength,
    so that light, contrast and one dark blob on smooth skin say nothing. First, the eight
    positions of every image are correlated with all images at 16 × 16 pixels, which takes
    2 · 8 · 256 · n² operations; then each image's eight nearest are aligned by shift and stretch,
    up to 8 % of a side (Gauss–Newton), at 24 × 24 and at 48 × 48 pixels.

    thumbnail_of  sample_id → (48, 48) uint8, as `thumbnail` gives it
    progress      called with (images searched, images in all)
    """
    names = sorted(thumbnail_of)
    if len(names) < 2:
        return []
    thumbnails = np.stack([thumbnail_of[name] for name in names])
    first, second, turns = _nearest(thumbnails, progress)
    blocks = (thumbnails[start : start + _ROWS] for start in range(0, len(names), _ROWS))
    detail = np.concatenate([_detail(block).astype(np.float16) for block in blocks])

    def correlate(start: int) -> Floats:
        part = slice(start, start + _PAIRS)
        a = np.stack([turned(detail[i], t) for i, t in zip(first[part], turns[part], strict=True)])
        return _aligned_correlation(a.astype(np.float32), detail[second[part]].astype(np.float32))

    parts = list(map_ahead(correlate, range(0, len(first), _PAIRS)))
    correlations = np.concatenate([np.zeros(0, np.float32), *parts])
    alike = np.flatnonzero(correlations >= threshold)
    return [
        Twin(names[first[i]], names[second[i]], int(turns[i]), float(correlations[i]))
        for i in alike[np.argsort(-correlations[alike], kind="stable")]
    ]


def _nearest(thumbnails: Thumbnail, progress: Progress | None) -> tuple[Ints, Ints, Ints]:
    """Pairs worth aligning, each once, with the turn in which they are most alike."""
    count, side = len(thumbnails), THUMBNAIL_PX // _COARSE_PX
    blocks = thumbnails.reshape(count, _COARSE_PX, side, _COARSE_PX, side)
    fine = _without_light(blocks.mean((2, 4), dtype=np.float32))
    coarse, _ = _normal(fine, np.ones_like(fine))
    against = coarse.reshape(count, -1).T
    found: dict[tuple[int, int], tuple[float, int]] = {}
    for start in range(0, count, _ROWS):
        rows = coarse[start : start + _ROWS]
        place = np.arange(len(rows))
        best = np.full((len(rows), count), -1, np.float32)
        turns = np.zeros(best.shape, np.int8)
        for turn in range(8):
            query = np.stack([turned(row, turn) for row in rows]).reshape(len(rows), -1)
            like = query @ against
            np.copyto(turns, turn, where=like > best)
            np.maximum(best, like, out=best)
        best[place, start + place] = -1
        nearest = np.argpartition(-best, min(_NEIGHBOURS, count) - 1)[:, :_NEIGHBOURS]
        for i, row in enumerate(nearest.tolist()):
            for j in row:
                if best[i, j] >= _FLOOR:
                    _note(found, start + i, j, float(best[i, j]), int(turns[i, j]))
        if progress:
            progress(start + len(rows), count)
    pairs = np.array([(*pair, turn) for pair, (_, turn) in sorted(found.items())], np.int64)
    first, second, turn_of = pairs.reshape(-1, 3).T
    return first, second, turn_of


def _note(
    found: dict[tuple[int, int], tuple[float, int]], i: int, j: int, like: float, turn: int
) -> None:
    # Two quarter turns undo each other; the mirrored positions each undo themselves.
    pair, turn = ((i, j), turn) if i < j else ((j, i), (4 - turn) % 4 if turn < 4 else turn)
    found[pair] = max(found.get(pair, (-1.0, 0)), (like, turn))


def _without_light(images: npt.NDArray[np.generic]) -> Floats:
    levels = images.astype(np.float32)
    fine: Floats = levels - gaussian_filter(levels, (0, _DETAIL_PX, _DETAIL_PX), mode="nearest")
    return fine


def _detail(thumbnails: Thumbnail) -> Floats:
    fine = _without_light(thumbnails)
    power = gaussian_filter(fine**2, (0, _ENVELOPE_PX, _ENVELOPE_PX), mode="nearest")
    detail: Floats = fine / np.sqrt(power + _NOISE**2)
    return detail


def _aligned_correlation(a: Floats, b: Floats) -> Floats:
    """The best correlation of each pair, (n, S, S) both, that alignment reaches: coarse to fine."""
    place = np.zeros((2, 2, len(a), 1), np.float32)
    best, place = _align(_halved(a), _halved(b), place, _STEPS[0])
    near = np.flatnonzero(best >= _PROMISING)
    best[:] = 0
    if len(near):
        best[near], _ = _align(a[near], b[near], place[:, :, near], _STEPS[1])
    return best


def _align(a: Floats, b: Floats, place: Floats, steps: int) -> tuple[Floats, Floats]:
    """Gauss–Newton over shift and stretch of a; the largest correlation met, and where.

    place    [shift or stretch, axis, pair, 1], in half sides
    """
    count, side = len(a), a.shape[1]
    half = np.float32((side - 1) / 2)
    grid = np.linspace(-1, 1, side, dtype=np.float32)
    best, best_place = np.full(count, -1, np.float32), place
    for step in range(steps + 1):
        places = half + half * (grid * (1 + place[1]) + place[0])
        inside = ((places >= 0) & (places <= side - 1)).astype(np.float32)
        overlap = inside[0][:, :, None] * inside[1][:, None, :]
        rows, columns = (_hat(axis, side) for axis in places)
        warped = rows @ a @ columns.transpose(0, 2, 1)
        moving, strength = _normal(warped, overlap)
        fixed, _ = _normal(b, overlap)
        correlation = (moving * fixed).sum((1, 2))
        best_place = np.where((correlation > best)[:, None], place, best_place)
        best = np.maximum(best, correlation)
        if step == steps:
            break
        by_y, by_x = np.gradient(warped, axis=(1, 2))
        slopes = [by_y, by_x, by_y * grid[:, None], by_x * grid]
        jacobian = (np.stack(slopes, 1) * overlap[:, None] * half).reshape(count, 4, -1)
        residual = ((fixed - moving) * strength).reshape(count, -1, 1)
        normal = jacobian @ jacobian.transpose(0, 2, 1)
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-6
        normal += damping[:, None, None] * np.eye(4, dtype=np.float32)
        change = np.linalg.solve(normal, jacobian @ residual)
        place = place + change.reshape(count, 2, 2, 1).transpose(1, 2, 0, 3)
        place = place.clip(-_REACH, _REACH)
    return best, best_place


def _halved(images: Floats) -> Floats:
    count, side, _ = images.shape
    halved: Floats = images.reshape(count, side // 2, 2, side // 2, 2).mean((2, 4))
    return halved


def _hat(places: Floats, side: int) -> Floats:
    """Weights (n, S, S) of linear interpolation at `places` (n, S) of a line of `side` pixels."""
    distance = np.abs(places[:, :, None] - np.arange(side, dtype=np.float32))
    weights: Floats = np.maximum(1 - distance, 0)
    return weights


def _normal(images: Floats, overlap: Floats) -> tuple[Floats, Floats]:
    """Each image with mean 0 and norm 1 over the overlap, 0 outside of it; and its norm before."""
    area = np.maximum(overlap.sum((1, 2), keepdims=True), 1)
    centred = (images - (images * overlap).sum((1, 2), keepdims=True) / area) * overlap
    norm = np.sqrt((centred**2).sum((1, 2), keepdims=True))
    return centred / np.maximum(norm, 1e-6), norm
