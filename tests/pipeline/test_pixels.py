"""Conventions of pixels: all 256 bytes there and back, masks in three channels, grey maps."""

import numpy as np
import torch

from pipeline.pixels import mask_pixels, to_01, to_grey, to_pm1, to_u8

BYTES = torch.arange(256, dtype=torch.uint8)


def test_bytes_become_the_float32_nearest_to_their_share_and_come_back() -> None:
    exact = np.arange(256) / 255
    np.testing.assert_array_equal(to_01(BYTES).numpy(), exact.astype(np.float32))
    # Doubling is exact, so both ways to write it round alike: x / 255 · 2 − 1 and x / 127.5 − 1.
    assert torch.equal(to_pm1(BYTES), BYTES.float() / 127.5 - 1)
    assert torch.equal(to_u8(to_pm1(BYTES)), BYTES)


def test_pixels_out_of_range_become_the_darkest_and_the_brightest_byte() -> None:
    assert to_u8(torch.tensor([-1.5, -1.0, 0.0, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]


def test_a_mask_is_plus_one_inside_and_minus_one_outside_in_each_channel() -> None:
    mask = torch.tensor([[[True, False]], [[False, False]]])
    assert mask_pixels(mask).tolist() == [[[[1, -1]]] * 3, [[[-1, -1]]] * 3]
    assert mask_pixels(mask[0]).shape == (3, 1, 2)


def test_grey_is_the_channel_mean_moved_to_01_and_clamped() -> None:
    decoded = torch.tensor([[-1.0, 1.0, 0.0, 3.0], [-1.0, 1.0, 0.3, 3.0], [-4.0, 1.0, 0.6, 0.0]])
    grey = to_grey(decoded.view(1, 3, 2, 2))
    torch.testing.assert_close(grey, torch.tensor([[[0.0, 1.0], [0.65, 1.0]]]))


def test_grey_passes_no_gradient_from_outside_its_range() -> None:
    decoded = torch.tensor([-3.0, 0.5, 3.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3).clone()
    decoded.requires_grad_()
    to_grey(decoded).sum().backward()
    assert decoded.grad is not None
    torch.testing.assert_close(decoded.grad[0, 0, 0], torch.tensor([0.0, 1 / 6, 0.0]))


def test_grey_keeps_level_and_batch_dimensions() -> None:
    assert to_grey(torch.zeros(3, 2, 3, 8, 6)).shape == (3, 2, 8, 6)
