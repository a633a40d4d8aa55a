"""Twins side by side on a contact sheet, to be judged by eye."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.archive.twins import Twin, turned
from pipeline.images import read_image, resize_image
from pipeline.images.sheet import Tile, draw_sheet
from pipeline.manifest import Manifest

PAIRS_SHOWN = 60
SIDE_PX = 176
PAIRS_A_ROW = 3


def choose_twins(manifest: Manifest, twins: Iterable[Twin]) -> list[Twin]:
    """The pairs that stand in two splits; all of them where none does."""
    split_of = dict(manifest.frame.select("sample_id", "split").rows())
    every = list(twins)
    return [twin for twin in every if split_of[twin.first] != split_of[twin.second]] or every


def draw_twins(manifest: Manifest, twins: Sequence[Twin]) -> Image.Image:
    """The first PAIRS_SHOWN pairs, each as two tiles: name and split, and the correlation.

    The first of a pair is turned as it lies on the second. `twins` is not empty.
    """
    row_of = {row["sample_id"]: row for row in manifest.frame.to_dicts()}
    tiles = []
    for twin in twins[:PAIRS_SHOWN]:
        first, second = row_of[twin.first], row_of[twin.second]
        tiles.append(_tile(manifest, first, twin.turn, ""))
        tiles.append(_tile(manifest, second, 0, f"{twin.correlation:.2f} "))
    width = 2 * PAIRS_A_ROW
    rows = [tiles[start : start + width] for start in range(0, len(tiles), width)]
    return draw_sheet(rows, SIDE_PX)


def _tile(manifest: Manifest, row: dict[str, Any], turn: int, words: str) -> Tile:
    image_u8 = resize_image(read_image(manifest.image_path(row), manifest.window), SIDE_PX)
    caption = f"{words}{row['split']} {row['sample_id']}"
    return Tile(caption, np.ascontiguousarray(turned(image_u8, turn), np.uint8))
