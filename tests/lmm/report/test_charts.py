"""Charts of the report: points, ticks and bars by hand."""

import numpy as np
import polars as pl
import pytest

from lmm.report.charts import curve, histogram, nice_ticks, sureness


def test_a_curve_goes_through_its_points() -> None:
    drawn = curve("loss", [(1, 8.0), (3, 0.0), (5, 4.0)])
    assert [label for _, label in drawn["ticks"]] == ["0", "2", "4", "6", "8"]
    # The plot is 306 × 150 from (44, 10): first, middle and last epoch; top, bottom and half.
    assert drawn["points"] == [("44.0", "10.0"), ("197.0", "160.0"), ("350.0", "85.0")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1]),
        (65.5, 84.4, [65, 70, 75, 80, 85]),
        (3, 3, [3, 4]),
        (0, 0, [0, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert nice_ticks(low, high) == expected


def test_the_histogram_counts_every_image_once() -> None:
    drawn = histogram(np.array([0, 0.049, 0.05, 0.5, 1.0]))
    counts = [int(bar["says"].split()[0]) for bar in drawn["bars"]]
    assert counts == [2, 1] + [0] * 8 + [1] + [0] * 8 + [1]
    assert drawn["median"] == "5.00"


def test_confidence_and_calibration_are_drawn_in_per_cent_of_the_plot() -> None:
    per_image = pl.DataFrame({"sample_id": ["a", "b"], "confidence": [0.5, 1.0], "dsc": [0.0, 0.8]})
    curve = [{"pixels": 12, "grey": 0.25, "truth": 0.5}]
    found = {"surest_share": 0.8, "dsc_of_surest": 0.4, "ece": 0.25, "curve": curve}
    scores = {"confidence": {**found, "ece_alone": 0.3}, "average": "views", "looks": 8}
    dots, bins = sureness(per_image, scores | {"members": [{"run": "s0"}, {"run": "s1"}]})
    # The plot is 306 × 150 from (44, 10).
    assert dots["dots"] == [
        ("197.0", "160.0", "a: confidence 50.0 %, DSC 0.0 %"),
        ("350.0", "40.0", "b: confidence 100.0 %, DSC 80.0 %"),
    ]
    assert [dot[:2] for dot in bins["dots"]] == [("120.5", "85.0")]
    assert "of the mean of 8 views, averaged with s1" in dots["caption"]
    assert "the surest 80% have DSC 40.00 %" in dots["caption"]
    assert bins["caption"].endswith("calibration error 25.00 %, 30.00 % before averaging")
    assert sureness(per_image, {}) == []
