"""Settings compared, as a table for a paper: CSV, Markdown or LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence

from lmm.metrics import KEYS, METRICS, Metric
from lmm.report.formats import escape_latex, escape_markdown, latex_table, markdown_table
from lmm.study.compare import Compared
from lmm.study.names import shown
from lmm.study.plan import Plan

SUFFIXES = {"csv": "csv", "markdown": "md", "latex": "tex"}
COSTS = ("parameters", "training_s")
MAIN = METRICS[0]  # of which tables for people have the difference


def format_table(plan: Plan, compared: Sequence[Compared], kind: str) -> str:
    """The table as text, a row a setting, in the order of the grid.

    What varies, number of runs, mean ± standard deviation over seeds (DSC and IoU in per cent,
    HD95 in px); of DSC the difference to the baseline with its 95 % interval, and the share of
    images on which the setting is better, in per cent. Where models differ their parameters and
    the seconds of training as well, where stores do the DSC of each tokenizer alone. CSV has plain
    numbers, and the differences of every metric.

    kind  csv, markdown or latex
    """
    return {"csv": _csv, "markdown": _markdown, "latex": _latex}[kind](plan, compared)


def _csv(plan: Plan, compared: Sequence[Compared]) -> str:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    parts = ("", "_sd", "_difference", "_low", "_high", "_wins")
    scores = [f"{key}{part}" for key in KEYS for part in parts]
    varied = plan.grid.varied
    writer.writerow(
        [*varied, "baseline", "runs", "of", "seeds", "images", *scores, *COSTS, "ceiling_dsc"]
    )
    for one in compared:
        said = [shown(one.settings[name]) if name in one.settings else "" for name in varied]
        counts = [int(one.baseline), one.runs, one.of, one.seeds, one.images]
        numbers = [cell for metric in METRICS for cell in _numbers(one, metric)]
        writer.writerow([*said, *counts, *numbers, *_costs(one), *_ceiling(one)])
    return content.getvalue()


def _numbers(one: Compared, metric: Metric) -> list[str]:
    """A metric's six cells, empty where there is no number."""
    scores, sds = (of and metric.shown(of[metric.key]) for of in (one.scores, one.sds))
    if one.difference is None:
        return [scores or "", sds or "", "", "", "", ""]
    difference = one.difference[metric.key]
    values = map(metric.shown, (difference.mean, *difference.interval))
    return [scores or "", sds or "", *values, f"{100 * difference.wins:.1f}"]


def _markdown(plan: Plan, compared: Sequence[Compared]) -> str:
    headings = [*plan.grid.varied, *_headings(plan)]
    rows = _cells(plan, compared, escape_markdown, "**{}**", " ± ", "–")
    return markdown_table(headings, rows, words=len(plan.grid.varied))


def _latex(plan: Plan, compared: Sequence[Compared]) -> str:
    names = [name.replace("_", " ").capitalize() for name in plan.grid.varied]
    headings = [escape_latex(one) for one in (*names, *_headings(plan))]
    rows = _cells(plan, compared, escape_latex, r"\textbf{{{}}}", r" $\pm$ ", "--")
    return latex_table(headings, rows, words=len(plan.grid.varied))


def _headings(plan: Plan) -> list[str]:
    costs = [cost.replace("_", " ") for cost in COSTS if plan.grid.has_peers]
    costs += [f"ceiling {MAIN.heading}"] if plan.grid.compares_stores else []
    of_main = [f"{MAIN.name} difference (95 % interval)", f"better on ({MAIN.unit})"]
    return ["runs", MAIN.heading, *of_main, *(metric.heading for metric in METRICS[1:]), *costs]


def _cells(
    plan: Plan,
    compared: Sequence[Compared],
    escape: Callable[[str], str],
    bold: str,
    plus_minus: str,
    to: str,
) -> list[list[str]]:
    rows = []
    for one in compared:
        means = [_mean(one, compared, metric, bold, plus_minus) for metric in METRICS]
        runs = str(one.runs) if one.runs == one.of else f"{one.runs} of {one.of}"
        said = [
            escape(shown(one.settings[name])) if name in one.settings else to
            for name in plan.grid.varied
        ]
        costs = _costs(one) if plan.grid.has_peers else []
        costs += _ceiling(one) if plan.grid.compares_stores else []
        rows.append([*said, runs, means[0], *_difference(one, to), *means[1:], *costs])
    return rows


def _mean(
    one: Compared, compared: Sequence[Compared], metric: Metric, bold: str, plus_minus: str
) -> str:
    if one.scores is None:
        return ""
    rivals = [round_shown(metric, other.scores[metric.key]) for other in compared if other.scores]
    mean = metric.shown(one.scores[metric.key])
    best = len(rivals) > 1 and float(mean) == metric.best(rivals)
    spread = f"{plus_minus}{metric.shown(one.sds[metric.key])}" if one.sds else ""
    return (bold.format(mean) if best else mean) + spread


def round_shown(metric: Metric, value: float) -> float:
    """A value as it is shown, so that what reads alike is alike."""
    return float(metric.shown(value))


def _costs(one: Compared) -> list[str]:
    """Parameters and seconds of training, empty without a run."""
    return ["", ""] if one.seconds is None else [str(one.parameters), f"{one.seconds:.0f}"]


def _ceiling(one: Compared) -> list[str]:
    return ["" if one.ceiling is None else MAIN.shown(one.ceiling)]


def _difference(one: Compared, to: str) -> list[str]:
    if one.difference is None:
        return ["baseline" if one.baseline else "", ""]
    difference = one.difference[MAIN.key]
    low, high = (signed(MAIN, value) for value in difference.interval)
    return [f"{signed(MAIN, difference.mean)} ({low} {to} {high})", f"{100 * difference.wins:.1f}"]


def signed(metric: Metric, value: float) -> str:
    """A difference in the metric's unit, with its sign."""
    return f"{metric.factor * value:+.2f}"
