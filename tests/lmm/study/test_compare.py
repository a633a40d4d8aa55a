"""Differences to a baseline: known ones found, with intervals that hold what they promise."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from studied import fabricated

from lmm.study.answer import compare_runs
from lmm.study.compare import differences

DIFFERENCE = 0.02


def scored(dsc: np.ndarray, group: np.ndarray) -> pl.DataFrame:
    ids = [f"s{i:03}" for i in range(len(dsc))]
    return pl.DataFrame({"sample_id": ids, "group": group, "dsc": dsc, "iou": dsc, "hd95": -dsc})


def simulated(rng: np.random.Generator) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two settings on 80 groups of one to three images, each hard or easy for both.

    The images of a group gain alike: intervals that took them for independent would be too narrow.
    """
    group = np.repeat(np.arange(80), rng.integers(1, 4, 80))
    easy = rng.normal(0.7, 0.15, len(group))
    gain = DIFFERENCE + rng.normal(0, 0.05, 80)[group] + rng.normal(0, 0.02, len(group))
    return scored(easy + gain, group), scored(easy, group)


def test_the_interval_holds_the_true_difference_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    held = alone = 0
    for _ in range(1000):
        better, baseline = simulated(rng)
        found = differences(better, baseline, resamples=600)
        single = [one.with_columns(group=pl.int_range(pl.len())) for one in (better, baseline)]
        torn = differences(*single, resamples=200)
        assert found
        assert torn
        low, high = found["dsc"].interval
        held += low <= DIFFERENCE <= high
        low, high = torn["dsc"].interval
        alone += low <= DIFFERENCE <= high
    assert 930 <= held <= 970
    assert alone < 910  # what groups are for


def test_a_setting_wins_where_it_is_better_and_half_of_each_tie() -> None:
    group = np.arange(4)
    one = scored(np.array([0.9, 0.5, 0.3, 0.4]), group)
    other = scored(np.array([0.8, 0.6, 0.3, 0.2]), group)
    found = differences(one, other)
    assert found
    assert found["dsc"].wins == pytest.approx(2.5 / 4)
    assert found["hd95"].wins == pytest.approx(2.5 / 4)  # lower is better, and it is the negative
    assert found["dsc"].mean == pytest.approx(0.2 / 4)


def test_only_images_that_both_were_scored_on_are_compared() -> None:
    one = scored(np.array([0.9, 0.5, 0.3]), np.arange(3))
    found = differences(one, one[:2].with_columns(pl.col("dsc") - 0.25))
    assert found
    assert found["dsc"].mean == pytest.approx(0.25)
    assert differences(one, one[:0]) is None


def test_seeds_are_averaged_before_images_are_compared(small_store: str, tmp_path: Path) -> None:
    grid = {"vary": {"width": [16, 32]}, "seeds": [0, 1], "baseline": {"width": 16}}
    plan = fabricated(tmp_path, small_store, **grid)
    results, (baseline, wide) = compare_runs(plan)
    assert baseline.baseline
    assert baseline.difference is None
    means = {
        width: np.array(
            [
                results.filter(width=width, sample_id=name)["dsc"].mean()
                for name in sorted({*results["sample_id"]})
            ]
        )
        for width in (16, 32)
    }
    assert wide.difference
    assert wide.difference["dsc"].mean == pytest.approx((means[32] - means[16]).mean())
    by_seed = [results.filter(width=32, seed=seed)["dsc"].mean() for seed in (0, 1)]
    assert wide.scores
    assert wide.sds
    assert wide.scores["dsc"] == pytest.approx(np.mean(by_seed))
    assert wide.sds["dsc"] == pytest.approx(np.std(by_seed, ddof=1))
