"""PSNR and DSC by hand."""

import pytest
import torch

from pipeline.fidelity import mask_dsc, psnr_db


def test_a_quarter_of_the_pixels_off_by_the_peak_is_six_decibel() -> None:
    truth = torch.full((2, 3, 2, 2), -1.0)
    truth[:, :, 0] = 1
    output = truth.clone()
    output[1, :, 0, 0] = -1  # 10 log10(4) dB
    assert psnr_db(output, truth).tolist() == [float("inf"), pytest.approx(6.0206, abs=1e-3)]


def test_one_grey_level_of_255_everywhere_is_48_decibel() -> None:
    truth = torch.zeros(1, 3, 4, 4)
    assert psnr_db(truth + 2 / 255, truth).item() == pytest.approx(48.1308, abs=1e-3)


def test_masks_are_compared_after_averaging_channels_and_two_empty_ones_agree() -> None:
    output = torch.full((2, 3, 2, 2), -1.0)
    output[0, :, 0] = 1
    output[0, :, 1, 0] = torch.tensor([1.0, 0.5, -1.0])  # 1/6 on average: foreground
    output[0, :, 1, 1] = torch.tensor([1.0, -0.5, -1.0])
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0] = True
    assert mask_dsc(output, mask).tolist() == [4 / 5, 1]
