"""Averages of grey maps: what is carried back lies in place, and equal maps stay what they are."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lmm.averaging import (
    TURNS,
    average_greys,
    clean_view,
    drawn_views,
    stored_views,
    turned,
    turned_views,
)
from lmm.decoder import MaskDecoder
from pipeline.augment import PARAMETERS, ViewPolicy, apply_views, draw_views, undo_views
from pipeline.pixels import to_01

SIDE = 64
RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.integers(0, 256, (3, 3, SIDE, SIDE), dtype=np.uint8))


class Light(torch.nn.Module):
    """A stand-in whose latent is the image: brighter than a value is foreground."""

    def __init__(self, above: float = 0.0) -> None:
        super().__init__()
        self.above = above

    def forward(self, z_image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": z_image - self.above}


class Plain:
    """A decoder that averages channels, as D's output is."""

    precision = "fp32"

    def __call__(self, z_mask_hat: torch.Tensor) -> torch.Tensor:
        return ((z_mask_hat.mean(1) + 1) / 2).clamp(0, 1)


DECODER: MaskDecoder = Plain()  # type: ignore[assignment]


def same(pixels_pm1: torch.Tensor) -> torch.Tensor:
    return pixels_pm1


def blobs(count: int, side: int) -> np.ndarray:
    """Lesions as a phantom has them: smooth, off the centre, within the image."""
    y, x = np.mgrid[:side, :side] / side
    rng = np.random.default_rng(1)
    masks = []
    for _ in range(count):
        cx, cy, a, b = *rng.uniform(0.35, 0.65, 2), *rng.uniform(0.1, 0.25, 2)
        noise = gaussian_filter(rng.normal(size=(side, side)), side / 12)
        masks.append(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + 0.2 * noise / noise.std() < 1)
    return np.stack(masks)


@pytest.mark.parametrize(
    "policy",
    [
        ViewPolicy(),
        ViewPolicy(p_affine=1),
        ViewPolicy(p_affine=1, shift=0.3, scale=0.3, rotation_deg=90),
        ViewPolicy(p_affine=0, p_colour=1),
    ],
)
def test_a_mask_of_each_view_comes_back_onto_the_clean_one_where_it_was_seen(
    policy: ViewPolicy,
) -> None:
    side, views = 224, 8
    clean = torch.from_numpy(blobs(4, side)).repeat_interleave(views, dim=0)
    plan = draw_views([f"s{i}" for i in range(4)], views, seed=5, policy=policy)
    images = torch.zeros(len(clean), 3, side, side, dtype=torch.uint8)
    seen = apply_views(images, clean, plan)[1]
    weighted, weights = undo_views(seen.float(), plan)
    whole = weights > 0.999
    for mask, back, inside in zip(clean, weighted > 0.5, whole, strict=True):
        p, t = back & inside, mask & inside
        assert t.sum() > 300
        assert 2 * (p & t).sum() / (p.sum() + t.sum()) >= 0.97
    assert (whole.all(dim=(1, 2)).sum() < len(whole)) == (policy.p_affine > 0)


def test_what_a_view_did_not_see_weighs_nothing_by_hand() -> None:
    # A quarter of the side to the right: the view has lost the last 16 columns, and shows a mirror
    # in its first 16.
    clean = dict(zip(PARAMETERS, (0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1), strict=True))
    plan = pl.DataFrame([{**clean, "shift_x": 0.25}], schema=dict.fromkeys(PARAMETERS, pl.Float64))
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, :, 10] = True
    view = apply_views(IMAGES[:1], mask, plan)[1].float()
    assert view[0, 0, [6, 26]].tolist() == [1, 1]  # mirrored from −10 to 10, and its own
    weighted, weights = undo_views(view, plan)
    expected = torch.ones(1, SIDE, SIDE)
    expected[:, :, SIDE - 16 :] = 0
    torch.testing.assert_close(weights, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(weighted, mask.float(), atol=1e-4, rtol=0)


def test_a_view_without_geometry_is_left_as_it_is_to_the_bit() -> None:
    maps = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    plan = draw_views(["a", "b"], 1)
    weighted, weights = undo_views(maps, plan)
    assert torch.equal(weighted, maps)
    assert (weights == 1).all()


@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_the_average_of_equal_maps_is_the_map_to_the_bit(count: int) -> None:
    z = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    plan = draw_views(["a", "b"], 1)
    views = list(stored_views([z] * count, [plan] * count))
    maps = average_greys([Light()] * count, DECODER, views)
    assert maps.shape == (2, 1 + count, SIDE, SIDE)
    for place in range(1 + count):
        assert torch.equal(maps[:, place], DECODER(z))


def test_views_are_weighted_by_what_they_saw_by_hand() -> None:
    one = torch.full((1, 1, 2, 2), -1.0)  # grey 0
    two = torch.full((1, 1, 2, 2), 1.0)  # grey 1
    weights = torch.tensor([[[1.0, 0.5], [0.0, 1.0]]])
    view = clean_view(two)
    partial = type(view)(two, lambda grey: (grey * weights, weights))
    maps = average_greys([Light()], DECODER, [clean_view(one), partial])
    torch.testing.assert_close(maps[0, 0], torch.tensor([[1 / 2, 1 / 3], [0, 1 / 2]]))
    assert torch.equal(maps[:, 1], torch.zeros(1, 2, 2))


def test_runs_count_the_same_and_each_is_given_alone() -> None:
    z = torch.zeros(1, 1, 4, 4)  # grey 0.5, less half of what is taken off
    maps = average_greys([Light(0.0), Light(0.4), Light(0.8)], DECODER, [clean_view(z)])
    found = maps[0, :, 0, 0].tolist()
    assert found == pytest.approx([0.3, 0.5, 0.3, 0.1])


def test_turns_are_the_eight_symmetries_of_a_square() -> None:
    numbers = torch.arange(9.0).view(1, 3, 3)
    found = {tuple(turned(numbers, *turn).flatten().tolist()) for turn in TURNS}
    square = numbers[0].numpy()
    expected = [np.rot90(one, k) for one in (square, square.T) for k in range(4)]
    assert found == {tuple(one.flatten().tolist()) for one in expected}
    assert torch.equal(turned(numbers, *TURNS[0]), numbers)


def test_turns_of_an_equivariant_model_give_the_clean_map_to_the_bit() -> None:
    maps = average_greys([Light()], DECODER, turned_views(IMAGES, same))
    expected = DECODER(to_01(IMAGES) * 2 - 1)
    assert torch.equal(maps[:, 0], expected)
    assert torch.equal(maps[:, 1], expected)


def test_turns_that_a_model_sees_otherwise_are_averaged() -> None:
    class Left(torch.nn.Module):
        """Foreground is the left half, whatever the image."""

        def forward(self, z_image: torch.Tensor) -> dict[str, torch.Tensor]:
            out = -torch.ones_like(z_image)
            out[..., : SIDE // 2] = 1
            return {"out": out}

    maps = average_greys([Left()], DECODER, turned_views(IMAGES[:1], same))
    torch.testing.assert_close(maps[0, 0], torch.full((SIDE, SIDE), 0.5))


def test_drawn_views_are_a_function_of_the_pixels_alone() -> None:
    def average(images: torch.Tensor, encode: Callable[..., torch.Tensor] = same) -> torch.Tensor:
        return average_greys([Light()], DECODER, drawn_views(images, 4, encode))[:, 0]

    many = average(IMAGES)
    assert torch.equal(average(IMAGES[[2, 0]]), many[[2, 0]])
    encoded: list[torch.Tensor] = []
    average(IMAGES, lambda pixels: encoded.append(pixels) or pixels)  # type: ignore[func-returns-value]
    assert len(encoded) == 4
    assert torch.equal(encoded[0], to_01(IMAGES) * 2 - 1)
    changed = [not torch.equal(one, encoded[0]) for one in encoded[1:]]
    assert any(changed)
    assert (many - DECODER(encoded[0])).abs().max() > 0.01
