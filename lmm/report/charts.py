"""Charts of the report as geometry for its SVG: training curves and histogram."""

import json
import math
from typing import Any

import numpy as np

from lmm.run import Run

LEFT, TOP, WIDTH, HEIGHT = 44, 10, 306, 150  # the plot's place in the template's viewBox, px
BINS = 20
TICKS_WANTED = 4


def curves(run: Run) -> list[dict[str, Any]]:
    """Training loss and DSC of the selection split over epochs, from the run's log."""
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    select_on = run.description["settings"]["select_on"]
    dsc_key, dsc_title = f"{select_on}_dsc", f"DSC on {select_on}, %"
    titles = {"loss_total": ("Training loss", 1), dsc_key: (dsc_title, 100)}
    return [
        curve(title, [(line["epoch"], factor * line[key]) for line in log if key in line])
        for key, (title, factor) in titles.items()
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
