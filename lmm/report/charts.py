"""Charts of the report as geometry for its SVG: training curves, histogram, confidence."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from lmm.evaluate import average_in_words
from lmm.run import Run

LEFT, TOP, WIDTH, HEIGHT = 44, 10, 306, 150  # the plot's place in the template's viewBox, px
BINS = 20
TICKS_WANTED = 4


def curves(run: Run) -> list[dict[str, Any]]:
    """Training loss and DSC of the selection split, if any, over epochs, from the run's log."""
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    select_on = run.description["settings"]["select_on"]
    dsc_key, dsc_title = f"{select_on}_dsc", f"DSC on {select_on}, %"
    titles = {"loss_total": ("Training loss", 1), dsc_key: (dsc_title, 100)}
    return [
        curve(title, [(line["epoch"], factor * line[key]) for line in log if key in line])
        for key, (title, factor) in titles.items()
        if any(key in line for line in log)
    ]


def curve(title: str, points: list[tuple[int, float]]) -> dict[str, Any]:
    """A polyline over (epoch, value), and the ticks of both axes."""
    epochs, values = np.array(points, dtype=np.float64).T
    marks = nice_ticks(float(values.min()), float(values.max()))
    low, high = marks[0], marks[-1]
    x = LEFT + WIDTH * (epochs - epochs[0]) / max(1.0, epochs[-1] - epochs[0])
    y = TOP + HEIGHT * (high - values) / (high - low)
    heights = [TOP + HEIGHT * (high - mark) / (high - low) for mark in marks]
    return {
        "title": title,
        "points": [(f"{a:.1f}", f"{b:.1f}") for a, b in zip(x, y, strict=True)],
        "ticks": [(f"{at:.1f}", f"{mark:g}") for at, mark in zip(heights, marks, strict=True)],
        "first": f"{values[0]:.2f}",
        "last": f"{values[-1]:.2f}",
        "from_epoch": int(epochs[0]),
        "to_epoch": int(epochs[-1]),
    }


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    rough = span / TICKS_WANTED
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]


def histogram(dsc: np.ndarray) -> dict[str, Any]:
    """How many images score how much: bars of 5 per cent of DSC, the last one with 100 %."""
    counts, _ = np.histogram(dsc, bins=BINS, range=(0, 1))
    marks = [mark for mark in nice_ticks(0, float(counts.max())) if mark == int(mark)]
    scale = HEIGHT / marks[-1]
    bars = [
        {
            "x": f"{LEFT + WIDTH * bin_ / BINS + 0.5:.1f}",
            "width": f"{WIDTH / BINS - 1:.1f}",
            "y": f"{TOP + HEIGHT - scale * count:.1f}",
            "height": f"{scale * count:.1f}",
            "says": f"{count} of {len(dsc)} images from {100 * bin_ // BINS} %",
        }
        for bin_, count in enumerate(counts.tolist())
    ]
    ticks = [(f"{TOP + HEIGHT - scale * mark:.1f}", f"{mark:g}") for mark in marks]
    return {"bars": bars, "ticks": ticks, "median": f"{100 * float(np.median(dsc)):.2f}"}


def sureness(per_image: pl.DataFrame, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts of how sure masks and grey maps are, and what they say; none where that is unknown."""
    if "confidence" not in scores:
        return []
    found = scores["confidence"]
    of = f" of the {words}" if (words := average_in_words(scores)) else ""
    columns = (per_image[name].to_numpy() for name in ("confidence", "dsc"))
    surest = f"the surest {found['surest_share']:.0%} have DSC {100 * found['dsc_of_surest']:.2f} %"
    figures = [
        {
            "caption": f"DSC by confidence{of}: {surest}",
            "axis": "confidence",
            **dsc_by_confidence(per_image["sample_id"], *columns),
        }
    ]
    if found["ece"] is not None:
        before = (
            f", {100 * found['ece_alone']:.2f} % before averaging" if "ece_alone" in found else ""
        )
        figures.append(
            {
                "caption": f"Foreground by grey value{of}: calibration error "
                f"{100 * found['ece']:.2f} %{before}",
                "axis": "grey",
                **calibration(found["curve"]),
            }
        )
    return figures


def dsc_by_confidence(
    sample_ids: Iterable[str], confidence: np.ndarray, dsc: np.ndarray
) -> dict[str, Any]:
    """A dot an image: how sure its mask is, and how good; on the diagonal it is as good as sure."""
    says = [
        f"{name}: confidence {100 * sure:.1f} %, DSC {100 * good:.1f} %"
        for name, sure, good in zip(sample_ids, confidence, dsc, strict=True)
    ]
    return _in_per_cent(confidence, dsc, says)


def calibration(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A dot a bin: mean grey value and share of foreground; calibrated maps are on the diagonal.

    curve  as `lmm.confidence.Calibration.curve` gives it
    """
    grey, truth = (np.array([one[key] for one in curve]) for key in ("grey", "truth"))
    says = [
        f"{one['pixels']} pixels of grey {100 * one['grey']:.1f} %: "
        f"{100 * one['truth']:.1f} % are foreground"
        for one in curve
    ]
    return _in_per_cent(grey, truth, says)


def _in_per_cent(x: np.ndarray, y: np.ndarray, says: Sequence[str]) -> dict[str, Any]:
    """Dots at fractions x and y, both axes from 0 to 100 %."""
    across, down = LEFT + WIDTH * x, TOP + HEIGHT * (1 - y)
    ticks = [(f"{TOP + HEIGHT * (1 - mark / 100):.1f}", f"{mark}") for mark in range(0, 101, 20)]
    dots = [(f"{a:.1f}", f"{b:.1f}", of) for a, b, of in zip(across, down, says, strict=True)]
    ends = {"x1": LEFT, "y1": TOP + HEIGHT, "x2": LEFT + WIDTH, "y2": TOP}
    return {"dots": dots, "ticks": ticks, "diagonal": ends}
