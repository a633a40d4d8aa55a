"""Masks drawn inside out are told from lesions that are larger than their image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.images import ENCLOSED, is_inside_out, read_mask, read_union

HEIGHT, WIDTH = 60, 80


def lesion(centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """An ellipse, in heights and widths of the image."""
    image = Image.new("1", (WIDTH, HEIGHT))
    (y, x), (ry, rx) = centre, radii
    box = ((x - rx) * WIDTH, (y - ry) * HEIGHT, (x + rx) * WIDTH, (y + ry) * HEIGHT)
    ImageDraw.Draw(image).ellipse(box, fill=1)
    return np.array(image)


INSIDE = {
    "in the middle": lesion((0.5, 0.5), (0.3, 0.3)),
    "small": lesion((0.4, 0.6), (0.03, 0.03)),
    "near a corner": lesion((0.2, 0.15), (0.15, 0.1)),
    "on the border": lesion((0.5, 0.05), (0.2, 0.2)),
}
WHOLE = {
    "nothing": np.zeros((HEIGHT, WIDTH), bool),
    "everything": np.ones((HEIGHT, WIDTH), bool),
    "all but the corners": lesion((0.5, 0.5), (0.68, 0.68)),
    "all but one side": lesion((0.5, 0.3), (2.0, 0.65)),
    "one pixel": np.ones((1, 1), bool),
}


@pytest.mark.parametrize("mask", INSIDE.values(), ids=INSIDE)
def test_background_inside_foreground_is_inside_out(mask: np.ndarray) -> None:
    assert is_inside_out(~mask)
    assert not is_inside_out(mask)


@pytest.mark.parametrize("mask", WHOLE.values(), ids=WHOLE)
def test_lesion_that_fills_its_image_is_not(mask: np.ndarray) -> None:
    assert not is_inside_out(mask)


def save(path: Path, mask: np.ndarray) -> Path:
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)
    return path


def test_enclosed_foreground_turns_what_is_inside_out_and_nothing_else(tmp_path: Path) -> None:
    mask, full = INSIDE["small"], WHOLE["all but the corners"]
    turned, sound, filling = (
        save(tmp_path / name, drawn)
        for name, drawn in {"a.png": ~mask, "b.png": mask, "c.png": full}.items()
    )
    assert np.array_equal(read_mask(turned), ~mask)
    assert np.array_equal(read_mask(turned, foreground=ENCLOSED), mask)
    assert np.array_equal(read_mask(sound, foreground=ENCLOSED), mask)
    assert np.array_equal(read_mask(filling, foreground=ENCLOSED), full)
    # Each file is turned before they are united.
    assert np.array_equal(read_union([turned, sound], foreground=ENCLOSED), mask)


@pytest.mark.parametrize(
    ("name", "inside_out"),
    [
        ("ISIC_0024664", True),  # looked at: a small dark lesion outlined as background
        ("ISIC_0024596", True),
        ("ISIC_0026702", False),  # looked at: a lesion that fills its image
        ("ISIC_0025782", False),
    ],
)
def test_real_masks_of_skin_are_told_apart(assets: Path, name: str, inside_out: bool) -> None:
    folder = assets / "data/ham10000/HAM10000_segmentations_lesion_tschandl"
    assert is_inside_out(read_mask(folder / f"{name}_segmentation.png")) == inside_out
