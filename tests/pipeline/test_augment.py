"""Views: the plan as a pure function, and pixels that follow it, image and mask together."""

import colorsys
import random
from itertools import product

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pipeline.augment import PARAMETERS, apply_views, draw_views

SIDE = 64
CLEAN = dict(zip(PARAMETERS, (0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1), strict=True))
COLOUR_OFF = {"hue": 0.0, "saturation": 1.0, "brightness": 1.0, "contrast": 1.0}


def plan_of(*views: dict[str, float]) -> pl.DataFrame:
    """A plan written by hand; what a view does not name is as in the clean view."""
    rows = [{name: float({**CLEAN, **view}[name]) for name in PARAMETERS} for view in views]
    return pl.DataFrame(rows)


def noise_images(count: int, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
    return torch.from_numpy(pixels)


def blob_mask() -> np.ndarray:
    """A letter F, off the centre: no flip or turn maps it to itself, and it touches no border."""
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[18:44, 22:27] = mask[18:23, 22:42] = mask[29:34, 22:36] = True
    return mask


def apply_to_blob(**view: float) -> np.ndarray:
    mask = torch.from_numpy(blob_mask())[None]
    return apply_views(noise_images(1), mask, plan_of(view))[1][0].numpy()


# --- the plan


def test_a_row_is_the_same_in_any_company() -> None:
    many = draw_views(["a", "b", "c"], views=9, seed=3)
    few = draw_views(["c", "x", "a"], views=4, seed=3)
    for sample_id in ("a", "c"):
        same = (pl.col("sample_id") == sample_id) & (pl.col("view") < 4)
        assert many.filter(same).equals(few.filter(same))


def test_seed_sample_and_view_each_change_the_row() -> None:
    drawn = pl.concat([draw_views(["a", "b"], views=3, seed=seed) for seed in (0, 1)])
    assert drawn.filter(pl.col("view") > 0).select(PARAMETERS).n_unique() == 8


def test_plan_lists_samples_slowest_and_view_0_clean() -> None:
    plan = draw_views(["b", "a"], views=3)
    assert plan["sample_id"].to_list() == ["b", "b", "b", "a", "a", "a"]
    assert plan["view"].to_list() == [0, 1, 2, 0, 1, 2]
    clean = plan.filter(pl.col("view") == 0).select(PARAMETERS)
    assert clean.rows() == [tuple(map(float, CLEAN.values()))] * 2


def test_frequencies_and_ranges_are_those_of_the_authors_code() -> None:
    """hflip .5, vflip .5, rot90 .5 of which a quarter is no turn, affine .4, jitter .2."""
    plan = draw_views([f"sample {i}" for i in range(4000)], views=2).filter(pl.col("view") == 1)
    drawn = {name: plan[name].to_numpy() for name in PARAMETERS}
    affine, colour = drawn["scale"] != 1, drawn["saturation"] != 1

    def shares(expected: float, happened: np.ndarray) -> None:
        deviation = (expected * (1 - expected) / len(happened)) ** 0.5
        assert happened.mean() == pytest.approx(expected, abs=4 * deviation)

    shares(0.5, drawn["horizontal_flip"] == 1)
    shares(0.5, drawn["vertical_flip"] == 1)
    shares(0.25, (drawn["horizontal_flip"] == 1) & (drawn["vertical_flip"] == 1))
    for turns in (1, 2, 3):
        shares(0.125, drawn["quarter_turns"] == turns)
    shares(0.4, affine)
    shares(0.2, colour)
    shares(0.08, affine & colour)
    reaches = {"shift_x": 0.15, "shift_y": 0.15, "rotation_deg": 20, "scale": 0.1}
    reaches |= {"hue": 0.1, "saturation": 0.1, "brightness": 0.1, "contrast": 0.1}
    for name, reach in reaches.items():
        there = colour if name in COLOUR_OFF else affine
        offset = drawn[name] - CLEAN[name]
        assert (offset != 0).tolist() == there.tolist()
        # Uniform on ±reach: nearly all of the range is used, evenly on both sides of 0.
        assert 0.98 * reach < np.abs(offset[there]).max() <= reach
        shares(0.5, offset[there] > 0)
        shares(0.5, np.abs(offset[there]) > reach / 2)


# --- the pixels


def test_view_0_is_the_clean_image_to_the_bit() -> None:
    image = noise_images(3)
    masks = torch.from_numpy(np.stack([blob_mask()] * 3))
    plan = draw_views(["a"], views=3)
    pixels, mask = apply_views(image, masks, plan[[0, 1, 0]])
    expected = image.numpy().astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    for row in (0, 2):
        assert np.array_equal(pixels[row].numpy(), expected[row])
        assert np.array_equal(mask[row].numpy(), blob_mask())
    assert pixels.dtype == torch.float32
    assert mask.dtype == torch.bool


def test_image_and_mask_stay_aligned_in_every_view() -> None:
    """Each pixel of a coordinate ramp says where it came from, which says what its mask must be."""
    plan = draw_views([f"sample {i}" for i in range(16)], views=5, seed=1)
    plan = plan.filter(pl.col("view") > 0).with_columns(
        **{k: pl.lit(v) for k, v in COLOUR_OFF.items()}
    )
    y, x = np.mgrid[:SIDE, :SIDE]
    ramp = np.stack([4 * x, 4 * y, 0 * x]).astype(np.uint8)  # 4 grey levels a pixel: ≤ 252
    count = len(plan)
    images = torch.from_numpy(np.stack([ramp] * count))
    masks = torch.from_numpy(np.stack([(x >= 20) & (y >= 37)] * count))
    pixels, moved = apply_views(images, masks, plan)
    source_x, source_y = ((pixels[:, :2].numpy() + 1) / 2 * 255 / 4).transpose(1, 0, 2, 3)
    # The nearest pixel's mask: x ≥ 20 there means that the source lies right of 19.5.
    expected = (source_x > 19.5) & (source_y > 36.5)
    undecided = (np.abs(source_x - 19.5) < 0.05) | (np.abs(source_y - 36.5) < 0.05)
    assert undecided.mean() < 0.1
    assert np.array_equal(moved.numpy() | undecided, expected | undecided)
    # Not all views may be flips and quarter turns: free angles are where alignment is lost.
    assert (plan["rotation_deg"] != 0).sum() > 10


@pytest.mark.parametrize(("flip_x", "flip_y", "turns"), [*product((0, 1), (0, 1), range(4))])
def test_flips_and_quarter_turns_are_numpys(flip_x: int, flip_y: int, turns: int) -> None:
    view = {"horizontal_flip": flip_x, "vertical_flip": flip_y, "quarter_turns": turns}
    image, mask = noise_images(1), torch.from_numpy(blob_mask())[None]

    def by_numpy(array: np.ndarray) -> np.ndarray:
        array = array[..., ::-1] if flip_x else array
        array = array[..., ::-1, :] if flip_y else array
        return np.rot90(array, turns, axes=(-2, -1))

    pixels, moved = apply_views(image, mask, plan_of(view))
    assert np.array_equal(moved[0].numpy(), by_numpy(blob_mask()))
    expected = by_numpy(image[0].numpy()).astype(np.float64) / 127.5 - 1
    # Noise is the worst case: 1e-5 px off the centre costs 1e-5 of a neighbour.
    np.testing.assert_allclose(pixels[0].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("angle", [17.0, -11.0])
def test_rotation_is_counter_clockwise_as_pils(angle: float) -> None:
    rotated = apply_to_blob(rotation_deg=angle)
    by_pil = np.array(Image.fromarray(blob_mask()).rotate(angle, Image.Resampling.NEAREST))
    assert (rotated != by_pil).sum() <= 2  # ties of the nearest neighbour
    clockwise = np.array(Image.fromarray(blob_mask()).rotate(-angle, Image.Resampling.NEAREST))
    assert (rotated != clockwise).sum() > 50


def test_shift_is_in_sides_to_the_right_and_down() -> None:
    moved = apply_to_blob(shift_x=8 / SIDE, shift_y=-5 / SIDE)
    assert np.array_equal(moved, np.roll(blob_mask(), (-5, 8), axis=(0, 1)))


def test_scale_above_1_enlarges_about_the_centre() -> None:
    centre = (SIDE - 1) / 2
    source = np.rint(centre + (np.arange(SIDE) - centre) / 1.25).astype(int)
    assert np.array_equal(apply_to_blob(scale=1.25), blob_mask()[np.ix_(source, source)])


def test_shift_is_of_the_output_whatever_the_scale() -> None:
    enlarged = apply_to_blob(scale=1.25)
    moved = apply_to_blob(scale=1.25, shift_x=4 / SIDE, shift_y=-3 / SIDE)
    assert np.array_equal(moved, np.roll(enlarged, (-3, 4), axis=(0, 1)))


def test_borders_are_mirrored_not_black() -> None:
    white = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    everywhere = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    view = {"rotation_deg": 20.0, "scale": 0.9, "shift_x": 0.15, "shift_y": -0.15}
    pixels, mask = apply_views(white, everywhere, plan_of(view))
    assert pixels.min() > 0.999
    assert mask.all()


def test_pixels_do_not_depend_on_batch_size_or_company() -> None:
    plan = draw_views([f"sample {i}" for i in range(8)], views=4)
    images = noise_images(32)
    masks = torch.from_numpy(np.stack([blob_mask()] * 32))
    alone = [apply_views(images[i : i + 1], masks[i : i + 1], plan[i]) for i in range(32)]
    for batch in (7, 32):
        for start in range(0, 32, batch):
            rows = slice(start, start + batch)
            pixels, mask = apply_views(images[rows], masks[rows], plan[rows])
            for row in range(len(mask)):
                torch.testing.assert_close(pixels[row], alone[start + row][0][0], atol=1e-5, rtol=0)
                assert torch.equal(mask[row], alone[start + row][1][0])


def test_what_was_given_is_not_written_to() -> None:
    images, masks = noise_images(8), torch.from_numpy(np.stack([blob_mask()] * 8))
    before = images.clone(), masks.clone()
    apply_views(images, masks, draw_views(["a"], views=8, seed=2))
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])


def test_colour_change_is_colorsys_on_each_pixel() -> None:
    rng = random.Random(0)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128), (1, 0, 0)]
    colours += [(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(58)]
    image = torch.tensor(colours, dtype=torch.uint8).T.reshape(1, 3, 8, 8)
    hue, saturation, brightness = 0.07, 1.09, 0.93
    view = {"hue": hue, "saturation": saturation, "brightness": brightness}
    pixels, _ = apply_views(image, torch.zeros(1, 8, 8, dtype=torch.bool), plan_of(view))
    for colour, got in zip(colours, pixels.reshape(3, 64).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
        changed = colorsys.hsv_to_rgb((h + hue) % 1, min(1, s * saturation), min(1, v * brightness))
        assert got == pytest.approx([2 * c - 1 for c in changed], abs=1e-4)


@pytest.mark.parametrize("contrast", [0.9, 1.1])
def test_contrast_is_the_distance_from_the_mean_grey(contrast: float) -> None:
    image = noise_images(1)
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    pixels, _ = apply_views(image, masks, plan_of({"contrast": contrast}))
    rgb = image[0].numpy() / 255
    # The luma of ITU-R BT.601, as torchvision and the authors' ColorJitter weigh it.
    grey = (np.array([0.299, 0.587, 0.114])[:, None, None] * rgb).sum(axis=0).mean()
    expected = np.clip(grey + contrast * (rgb - grey), 0, 1)
    assert pixels[0].numpy() == pytest.approx(2 * expected - 1, abs=1e-4)


def test_contrast_changes_a_grey_image() -> None:
    grey = noise_images(1)[:, :1].expand(1, 3, SIDE, SIDE)
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    pixels, _ = apply_views(grey, masks, plan_of({"hue": 0.1, "saturation": 1.1, "contrast": 0.9}))
    assert torch.allclose(pixels[:, 0], pixels[:, 1], atol=1e-5)
    assert pixels.std() == pytest.approx(0.9 * float((grey / 127.5 - 1).std()), rel=1e-3)


@pytest.mark.parametrize("level", [0, 255])
def test_black_stays_black_and_white_stays_in_range_under_colour(level: int) -> None:
    image = torch.full((1, 3, 8, 8), level, dtype=torch.uint8)
    view = {"hue": -0.1, "saturation": 1.1, "brightness": 1.1}
    pixels, _ = apply_views(image, torch.zeros(1, 8, 8, dtype=torch.bool), plan_of(view))
    assert (pixels == (1 if level else -1)).all()


def test_colour_leaves_the_mask_alone() -> None:
    image, mask = noise_images(1), torch.from_numpy(blob_mask())[None]
    pixels, kept = apply_views(image, mask, plan_of({"hue": 0.1, "brightness": 0.9}))
    assert torch.equal(kept, mask)
    assert (pixels - (image / 127.5 - 1)).abs().mean() > 0.05


def test_some_views_are_drawn_as_among_all() -> None:
    every = draw_views(["a", "b"], 9, seed=2)
    assert (
        draw_views(["a", "b"], [8, 3], seed=2)
        .sort("sample_id", "view")
        .equals(every.filter(pl.col("view").is_in([3, 8])).sort("sample_id", "view"))
    )
