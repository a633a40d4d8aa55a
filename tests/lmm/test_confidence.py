"""Confidence and calibration, by hand on small arrays."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from lmm.confidence import (
    Calibration,
    expected_dsc,
    mean_error,
    mean_of_surest,
    rank_correlation,
)


def test_expected_dsc_by_hand() -> None:
    greys = np.zeros((5, 2, 2), np.float32)
    greys[0] = [[0.9, 0.6], [0.5, 0.0]]  # 2 · 1.5 / (2.0 + 2)
    greys[1] = [[1, 1], [0, 0]]  # certain
    greys[2] = [[0.4, 0.4], [0, 0]]  # an empty mask with foreground expected
    greys[4] = 1
    np.testing.assert_allclose(expected_dsc(greys), [0.75, 1, 0, 1, 1], rtol=1e-6)


def test_expected_dsc_is_near_what_drawn_truths_score() -> None:
    rng = np.random.default_rng(0)
    grey = rng.uniform(0, 1, (1, 60, 60)).astype(np.float32) ** 3
    mask = grey[0] > 0.5
    truths = rng.uniform(size=(400, 60, 60)) < grey
    areas = truths.sum((1, 2)) + mask.sum()
    dsc = 2 * (truths & mask).sum((1, 2)) / areas
    assert expected_dsc(grey)[0] == pytest.approx(dsc.mean(), abs=0.005)


def test_the_surest_are_four_of_five_rounded_up() -> None:
    values = np.array([0.1, 0.9, 0.5, 0.7, 0.3, 0.2])
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert mean_of_surest(values, confidence) == pytest.approx((0.1 + 0.9 + 0.5 + 0.7 + 0.3) / 5)
    assert mean_of_surest(values, -confidence) == pytest.approx((0.9 + 0.5 + 0.7 + 0.3 + 0.2) / 5)
    assert mean_of_surest(np.array([0.25]), np.array([0.0])) == 0.25


def test_the_rank_correlation_is_scipy_s_spearman() -> None:
    a, b = np.random.default_rng(0).integers(0, 6, (2, 30)).astype(float)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, np.ones(30)) is None


def test_the_calibration_error_by_hand() -> None:
    # All of 4 × 4 pixels are in the box: its margin is rounded to 0, truth and mask reach corners.
    grey = np.zeros((1, 4, 4), np.float32)
    truth = np.zeros((1, 4, 4), bool)
    grey[0, 0, :3] = 0.9, 0.92, 0.91  # one bin of 1/15, of which 2 of 3 are foreground
    truth[0, 0, :2] = True
    grey[0, 3, 3] = 0.3  # a bin of its own, and foreground
    truth[0, 3, 3] = True
    calibration = Calibration()
    calibration.add(grey, truth)
    expected = (3 * abs(2.73 / 3 - 2 / 3) + 1 * abs(0.3 - 1) + 12 * 0) / 16
    assert calibration.error == pytest.approx(expected, rel=1e-6)
    curve = calibration.curve()
    assert [one["pixels"] for one in curve] == [12, 1, 3]
    assert [one["grey"] for one in curve] == pytest.approx([0, 0.3, 0.91])
    assert [one["truth"] for one in curve] == pytest.approx([0, 1, 2 / 3])


def test_pixels_within_a_tenth_of_the_side_of_truth_or_mask_are_counted() -> None:
    grey, truth = np.zeros((1, 40, 60), np.float32), np.zeros((1, 40, 60), bool)
    grey[0, 20, 30:32] = 1
    truth[0, 22, 29] = True
    calibration = Calibration()
    calibration.add(grey, truth)
    # Rows 20 to 22 and columns 29 to 31, and 6 on each side.
    assert sum(one["pixels"] for one in calibration.curve()) == 15 * 15
    grey[0, 0, 0] = 1  # cut at the border: rows 0 to 28, columns 0 to 37
    calibration.add(grey, truth)
    assert sum(one["pixels"] for one in calibration.curve()) == 15 * 15 + 29 * 38


def test_certain_maps_that_are_right_have_no_error_and_empty_images_no_pixels() -> None:
    truth = np.zeros((2, 8, 8), bool)
    empty, sure = Calibration(), Calibration()
    empty.add(np.full((2, 8, 8), 0.4, np.float32), truth)
    assert (empty.error, empty.curve()) == (None, [])
    truth[:, 2:5, 3:6] = True
    sure.add(truth.astype(np.float32), truth)
    assert sure.error == 0
    assert mean_error([empty, sure]) == 0
    assert mean_error([empty]) is None
