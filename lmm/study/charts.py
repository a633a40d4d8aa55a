"""Charts of a study as geometry for its SVG: differences on one axis, curves side by side."""

import json
from collections.abc import Sequence
from typing import Any

from lmm.report.charts import HEIGHT, LEFT, TOP, WIDTH, nice_ticks
from lmm.study.compare import Compared
from lmm.study.plan import Plan
from lmm.study.tables import MAIN

STRIP = (18, 364)  # first x and width of a strip, of a viewBox 400 wide


def strips(compared: Sequence[Compared]) -> dict[str, Any]:
    """Each setting's difference to the baseline on one axis, in the unit that is shown.

    returns  ticks, (x, label) of the axis; zero, the baseline's x; by_setting, in their order, a
             point for each seed, and mean and interval of the difference where there is one
    """
    reference = next((one.scores for one in compared if one.baseline), None)
    origin = reference[MAIN.key] if reference else 0.0
    rows = [_strip(one, origin) for one in compared]
    every = [x for row in rows for x in (*row["seeds"], *row["interval"])] + [0.0]
    marks = nice_ticks(min(every), max(every))

    def x(value: float) -> str:
        return f"{STRIP[0] + STRIP[1] * (value - marks[0]) / (marks[-1] - marks[0]):.1f}"

    return {
        "ticks": [(x(mark), f"{mark:+g}" if mark else "0") for mark in marks],
        "zero": x(0.0),
        "by_setting": [{part: [*map(x, of)] for part, of in row.items()} for row in rows],
    }


def _strip(one: Compared, origin: float) -> dict[str, list[float]]:
    seeds = [MAIN.factor * (of_seed[MAIN.key] - origin) for of_seed in one.by_seed.values()]
    if one.difference is None:
        return {"seeds": seeds, "interval": [], "mean": [0.0] if one.baseline and seeds else []}
    difference = one.difference[MAIN.key]
    interval = [MAIN.factor * bound for bound in difference.interval]
    return {"seeds": seeds, "interval": interval, "mean": [MAIN.factor * difference.mean]}


def curves(plan: Plan) -> dict[str, Any]:
    """DSC of the split that chooses, of every setting's runs on the same two axes.

    Over epochs; where models differ over seconds of training, as their epochs do not compare.

    returns  ticks of DSC, (y, label); over, epoch or second; the last of them; by_setting, in their
             order, a polyline for each run that has validated
    """
    over = "seconds" if plan.grid.has_peers else "epoch"
    points = [
        [_points(plan, run.name, over) for run in plan.runs if run.setting == place]
        for place in range(len(plan.grid.settings))
    ]
    every = [point for of_setting in points for run in of_setting for point in run]
    if not every:
        return {"ticks": [], "over": over, "last": 0, "by_setting": [[] for _ in points]}
    last = max(x for x, _ in every)
    values = [value for _, value in every]
    marks = nice_ticks(min(values), max(values))
    high, span = marks[-1], marks[-1] - marks[0]

    def at(x: float, value: float) -> str:
        return f"{LEFT + WIDTH * x / last:.1f},{TOP + HEIGHT * (high - value) / span:.1f}"

    return {
        "ticks": [(f"{TOP + HEIGHT * (high - mark) / span:.1f}", f"{mark:g}") for mark in marks],
        "over": over,
        "last": f"{last:,.0f}",
        "by_setting": [
            # A line to itself is a dot.
            [
                " ".join(at(*point) for point in (run if run[1:] else 2 * run))
                for run in of_setting
                if run
            ]
            for of_setting in points
        ],
    }


def _points(plan: Plan, name: str, over: str) -> list[tuple[float, float]]:
    """(epoch or seconds, DSC as it is shown) of a run's validations, as far as its log goes."""
    log = plan.out / "runs" / name / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    found = [(line[over], line.get("val_dsc", line.get("test_dsc"))) for line in lines]
    return [(x, MAIN.factor * dsc) for x, dsc in found if dsc is not None]
