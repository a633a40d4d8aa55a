"""Scores of runs as a table for a paper: seeds grouped, best in bold; CSV, Markdown or LaTeX."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmm.evaluate import average_in_words, read_averages, read_evaluations
from lmm.metrics import FLAGS, HD95, KEYS, METRICS, Metric
from lmm.report.folds import by_seed
from lmm.report.formats import escape_latex, escape_markdown, latex_table, markdown_table
from lmm.run import Run
from lmm.run.lineage import seen_in_words
from lmm.splits import FOLD
from pipeline.errors import UsageError


@dataclass(frozen=True)
class Row:
    """Runs of equal settings, but for the seed, scored on one set of images.

    Of runs of folds, those of one seed count as one: its score is of every fold's images, each
    scored by the run that left it out.

    images    digest of the set; see `lmm.splits.images_digest`
    seen      how many of the images the runs had seen, in words; empty where none
    settings  what the rows of the table may differ in, as words
    scores    mean over seeds of each run's mean: dsc, iou in per cent, hd95 in px
    sds       sample standard deviation over seeds, or None for a single run
    counts    missed, empty and false_alarms, of all seeds together
    without_twins  as scores, of the images without a twin among those trained on; None where all
              are, or where it is not known
    parameters, seconds  of the model, and that its training took, mean over runs; None where a run
              does not say
    """

    dataset: str
    tokenizer: str
    images: str
    seen: str
    settings: dict[str, str]
    seeds: int
    scores: dict[str, float]
    sds: dict[str, float] | None
    counts: dict[str, int]
    without_twins: dict[str, float] | None
    parameters: int | None
    seconds: float | None


def short_name(tokenizer: str | None) -> str:
    """A tokenizer's name as tables have it: of a path, its last part; of none a dash."""
    if tokenizer is None:
        return "–"
    is_path = tokenizer.startswith((".", "/", "~"))
    return Path(tokenizer).name if is_path else tokenizer


def build_rows(runs: Sequence[Run], split: str) -> list[Row]:
    """Rows of the table: one for every set of images and setting, in order of first appearance.

    raises  ArtefactError for a run that has not been scored on `split`; UsageError when some were
            scored with another definition of HD95, or when a seed has not one run of each fold
    """
    groups: dict[tuple[str, ...], list[tuple[Run, dict[str, Any]]]] = {}
    settings: dict[tuple[str, ...], dict[str, str]] = {}
    for run in {run.path.resolve(): run for run in runs}.values():
        averages = read_averages(run, split).values()
        for summary in (*read_evaluations(run, split), *averages):
            words = _settings(run, split)
            if average := average_in_words(summary):
                words["average"] = average
            images = json.dumps(summary["folds"]) if split == FOLD else summary["images_digest"]
            seen = seen_in_words(summary["seen"], summary["n"])
            scored_on = (summary["dataset"], summary["tokenizer"] or "", images, seen)
            key = (*scored_on, str(summary["size"]), json.dumps(words))
            groups.setdefault(key, []).append((run, summary))
            settings[key] = words
    require_one_hd95([one for group in groups.values() for _, one in group])
    of_seeds = by_seed if split == FOLD else _summaries
    return [
        _row(key, settings[key], of_seeds(group), [run for run, _ in group])
        for key, group in groups.items()
    ]


def _summaries(scored: Sequence[tuple[Run, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [summary for _, summary in scored]


def require_one_hd95(summaries: Sequence[Mapping[str, Any]]) -> HD95:
    """The definition of HD95 that all were scored with; UsageError when there are two."""
    definitions: set[HD95] = {one["hd95_definition"] for one in summaries}
    if len(definitions) > 1:
        raise UsageError(
            f"the runs were scored with different definitions of HD95: {sorted(definitions)}",
            "gms-lmm evaluate them again with one --hd95",
        )
    return definitions.pop()


def _settings(run: Run, split: str) -> dict[str, str]:
    """What a row is told apart by: every setting that was made but the seed, and the views.

    Where folds are scored, the fold does not tell rows apart.
    """
    asked = run.description["settings"]
    told = {"model": run.model_name, "loss": run.loss}
    if asked is None:
        return told | {"source": str(run.description["imported_from"])}
    alike = ("seed", "fold") if split == FOLD else ("seed",)
    words = told | {
        name: str(value) for name, value in asked.items() if name not in alike and value is not None
    }
    if run.is_baseline:
        return words
    return {"views": str(run.description["store"]["receipt"]["views"])} | words


def _row(
    key: tuple[str, ...], settings: dict[str, str], group: list[dict[str, Any]], runs: list[Run]
) -> Row:
    made = [run.summary() if run.finished else {} for run in runs]
    values = {m.key: [m.factor * one[m.key] for one in group] for m in METRICS}
    return Row(
        dataset=key[0],
        tokenizer=short_name(key[1] or None),
        images=key[2],
        seen=key[3],
        settings=settings,
        seeds=len(group),
        scores={name: float(np.mean(of_seeds)) for name, of_seeds in values.items()},
        sds={name: float(np.std(of_seeds, ddof=1)) for name, of_seeds in values.items()}
        if len(group) > 1
        else None,
        counts={name: sum(one[name] for one in group) for name in FLAGS.values()},
        without_twins=_without_twins(group),
        parameters=made[0].get("parameters"),
        seconds=float(np.mean([one["seconds"] for one in made])) if all(made) else None,
    )


def _without_twins(group: list[dict[str, Any]]) -> dict[str, float] | None:
    parts = [one.get("without_twins") for one in group]
    if not all(parts):
        return None
    return {m.key: m.factor * float(np.mean([one[m.key] for one in parts if one])) for m in METRICS}


def format_table(rows: Sequence[Row], kind: str) -> str:
    """The table as text: data set, tokenizer, loss, then what else the rows differ in, and scores.

    DSC and IoU in per cent, HD95 in px, two decimals, ± the standard deviation over seeds. The
    best on a set of images, as printed, is in bold where there is something to compare; CSV has
    plain numbers, and columns for the standard deviations, the number of seeds, and how many images
    of all seeds were missed, left empty and false alarms; where runs were trained on twins of some
    images, the scores of the others, too. Where runs had
    seen some of the images, or it is not known, a column says so.

    kind  csv, markdown or latex
    """
    return {"csv": _csv, "markdown": _markdown, "latex": _latex}[kind](rows)


def _csv(rows: Sequence[Row]) -> str:
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    names = _telling(rows)
    scores = [column for name in KEYS for column in (name, f"{name}_sd")]
    without = [f"{name}_without_twins" for name in KEYS if any(row.without_twins for row in rows)]
    writer.writerow(["data set", "tokenizer", *names, "seeds", *scores, *FLAGS.values(), *without])
    for row in rows:
        cells: list[object] = [
            cell
            for name in KEYS
            for cell in (f"{row.scores[name]:.2f}", f"{row.sds[name]:.2f}" if row.sds else "")
        ]
        rest = row.without_twins or {}
        cells += [*row.counts.values()]
        cells += [f"{rest[name]:.2f}" if rest else "" for name in KEYS if without]
        writer.writerow([*_words(row, names), row.seeds, *cells])
    return content.getvalue()


def _markdown(rows: Sequence[Row]) -> str:
    names = _telling(rows)
    headings = ["data set", "tokenizer", *names]
    cells = _cells(rows, names, escape_markdown, bold="**{}**", plus_minus=" ± ")
    every = [*headings, *(metric.heading for metric in METRICS)]
    return markdown_table(every, cells, words=len(headings))


def _latex(rows: Sequence[Row]) -> str:
    names = _telling(rows)
    headings = ["Data set", "Tokenizer", *(name.replace("_", " ").capitalize() for name in names)]
    cells = _cells(rows, names, escape_latex, bold=r"\textbf{{{}}}", plus_minus=r" $\pm$ ")
    titles = [*headings, *(escape_latex(metric.heading) for metric in METRICS)]
    return latex_table(titles, cells, words=len(headings))


def _telling(rows: Sequence[Row]) -> list[str]:
    """The loss, the settings that the rows differ in, and `seen` where there is any to say.

    Of several models also what each costs. A setting that a model does not have tells it from none.
    """
    names = dict.fromkeys(name for row in rows for name in row.settings)
    having = {
        name: {row.settings["model"] for row in rows if name in row.settings} for name in names
    }
    differing = [
        name
        for name, models in having.items()
        if len({row.settings.get(name) for row in rows if row.settings["model"] in models}) > 1
    ]
    seen = ["seen"] if any(row.seen for row in rows) else []
    costs = ["parameters", "training_s"] if "model" in differing else []
    return ["loss", *(name for name in differing if name != "loss"), *costs, *seen]


def _words(row: Row, names: Sequence[str]) -> list[str]:
    seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
    costs = {"parameters": str(row.parameters or ""), "training_s": seconds}
    said = {**row.settings, **costs, "seen": row.seen}
    return [row.dataset, row.tokenizer, *(said.get(name, "") for name in names)]


def _cells(
    rows: Sequence[Row],
    names: Sequence[str],
    escape: Callable[[str], str],
    bold: str,
    plus_minus: str,
) -> list[list[str]]:
    lines = []
    for row in rows:
        line = [escape(word) for word in _words(row, names)]
        for metric in METRICS:
            mean = f"{row.scores[metric.key]:.2f}"
            best = bold.format(mean) if _is_best(row, rows, metric) else mean
            line.append(best + (f"{plus_minus}{row.sds[metric.key]:.2f}" if row.sds else ""))
        lines.append(line)
    return lines


def _is_best(row: Row, rows: Sequence[Row], metric: Metric) -> bool:
    """Whether a row's score, as printed, is the best of two rows or more that compare."""
    rivals = [
        round(one.scores[metric.key], 2)
        for one in rows
        if (one.images, one.seen) == (row.images, row.seen)
    ]
    return len(rivals) > 1 and round(row.scores[metric.key], 2) == metric.best(rivals)
