"""Pictures of the report: each image once, small; contours as lines that stay sharp enlarged."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from lmm.baseline.pixels import Images
from lmm.metrics import METRICS
from pipeline.errors import InputError
from pipeline.images import ImageU8, Mask
from pipeline.samples import original_images

FULL_PX = 224  # an image as the LMM of the paper sees it
BUDGET_PX = 150 * FULL_PX**2  # pixels of all images of a page: about 2 MB of WebP
SMALLEST_PX = 48
QUALITY = 70
LONGEST_PATH_BYTES = 10_000
SHOWN = 3  # images of each rank


def ranks(per_image: pl.DataFrame) -> dict[str, list[str]]:
    """Sample ids of the worst, median and best images by DSC, the most telling first."""
    ids = per_image.sort("dsc", "sample_id")["sample_id"].to_list()
    count = min(SHOWN, -(-len(ids) // 3))
    middle = sorted(range(len(ids)), key=lambda place: abs(place - (len(ids) - 1) / 2))
    return {
        "worst": ids[:count],
        "median": [ids[place] for place in middle[:count]],
        "best": ids[::-1][:count],
    }


def side_px(count: int, size: int) -> int:
    """Side at which `count` images are kept, so that many images make no larger page than few."""
    affordable = int((BUDGET_PX / count) ** 0.5)
    return min(size, FULL_PX, max(SMALLEST_PX, affordable))


def images_of(source: Images, sample_ids: Sequence[str]) -> dict[str, ImageU8] | None:
    """Images by sample id, as ingested, at their source's size; None where they changed since."""
    try:
        images = list(original_images(source.source(), source.size, sample_ids))
    except InputError:
        return None
    return dict(zip(sample_ids, images, strict=True))


def image_uri(image_u8: ImageU8, side: int) -> str:
    """An image (S, S, 3) uint8 as a WebP data address of side × side pixels."""
    content = io.BytesIO()
    picture = Image.fromarray(image_u8).resize((side, side), Image.Resampling.LANCZOS)
    picture.save(content, "webp", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def outline(mask: Mask) -> str:
    """Contour of a mask as an SVG path: closed lines through the middles of its boundary's edges.

    mask     (H, W) bool
    returns  path data in half pixels, so that the picture's viewBox is 2W × 2H; empty when the
             mask is. An edge is a side of a pixel between mask and background, and the outside of
             the image is background. A contour longer than its image has bytes, as of noise, is
             that of every second pixel, or fourth, and so on.
    """
    step, path = 1, _outline(mask, 1)
    while len(path) > LONGEST_PATH_BYTES:
        step *= 2
        path = _outline(mask, step)
    return path


def _outline(mask: Mask, step: int) -> str:
    return "".join(_closed_path(step * loop) for loop in _loops(mask[::step, ::step]))


def _loops(mask: Mask) -> list[np.ndarray]:
    """Boundary edges chained into closed loops of corner points, (k, 2) x and y each."""
    following = _edges(mask)
    loops = []
    while following:
        start = corner = next(iter(following))
        loop = []
        while corner in following:
            loop.append(corner)
            ends = following[corner]
            corner_after = ends.pop()
            if not ends:
                del following[corner]
            corner = corner_after
        assert corner == start, "as many edges enter a corner as leave it"
        loops.append(np.array(loop))
    return loops


def _edges(mask: Mask) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Corner to next corners, the mask on the right hand."""
    padded = np.pad(mask, 1).astype(np.int8)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    across = np.diff(padded, axis=0)[:, 1:-1]
    for y, x in np.argwhere(across).tolist():
        ends = [(x, y), (x + 1, y)]
        start, end = ends if across[y, x] > 0 else ends[::-1]
        following.setdefault(start, []).append(end)
    down = np.diff(padded, axis=1)[1:-1]
    for y, x in np.argwhere(down).tolist():
        ends = [(x, y), (x, y + 1)]
        start, end = ends[::-1] if down[y, x] > 0 else ends
        following.setdefault(start, []).append(end)
    return following


def _closed_path(loop: np.ndarray) -> str:
    middles = loop + np.roll(loop, -1, axis=0)
    steps = np.roll(middles, -1, axis=0) - middles
    turns = middles[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
    moves = np.diff(turns, axis=0)
    x, y = turns[0].tolist()
    lines = "l" + " ".join(f"{dx} {dy}" for dx, dy in moves.tolist())
    return f"M{x} {y}{lines.replace(' -', '-')}z"


def caption(row: Mapping[str, Any]) -> str:
    """One image's scores in a line."""
    flags = {"empty": "missed, nothing drawn", "missed": "missed", "false_alarm": "false alarm"}
    verdict = next((f" · {words}" for flag, words in flags.items() if row[flag]), "")
    return " · ".join(f"{m.name} {m.shown(row[m.key])} {m.unit}" for m in METRICS) + verdict
