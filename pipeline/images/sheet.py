"""A contact sheet: pictures in a grid, each under its caption, and the file it is written to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import UsageError
from pipeline.images.reading import ImageU8

GAP_PX, CAPTION_PX, FONT_PX = 8, 18, 12
PAPER, INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: (S, S, 3) uint8 pixels, and the words above them."""

    caption: str
    pixels: ImageU8


def draw_sheet(tiles: list[list[Tile]], size: int) -> Image.Image:
    """Rows of tiles as a grid; `size` is the side of a tile's picture, px."""
    columns = max(len(row) for row in tiles)
    step_x, step_y = size + GAP_PX, size + CAPTION_PX + GAP_PX
    sheet = Image.new("RGB", (GAP_PX + columns * step_x, GAP_PX + len(tiles) * step_y), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            left, top = GAP_PX + x * step_x, GAP_PX + y * step_y
            draw.text((left, top), _fitted(tile.caption, draw, font, size), INK, font)
            sheet.paste(Image.fromarray(tile.pixels), (left, top + CAPTION_PX))
    return sheet


def _fitted(words: str, draw: ImageDraw.ImageDraw, font: Any, width_px: int) -> str:
    """The words, cut short with an ellipsis where they are wider than their tile."""
    if draw.textlength(words, font) <= width_px:
        return words
    while words and draw.textlength(f"{words}…", font) > width_px:
        words = words[:-1]
    return f"{words}…"


def write_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet in the format of the path's suffix.

    raises  UsageError when the place cannot be written or the suffix is none of an image
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be written: {reason}", "--output sheet.png") from error
