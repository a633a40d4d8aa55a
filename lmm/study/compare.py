"""Settings compared: each with the baseline, image by image, seeds averaged first."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lmm.metrics import KEYS, METRICS, Floats, intervals_of_means
from lmm.study.names import label
from lmm.study.plan import Plan


@dataclass(frozen=True)
class Difference:
    """What a setting scores more than the baseline on the same images.

    mean      of the images' differences, each of means over seeds
    interval  95 %: 2.5th and 97.5th percentile of that mean over resampled groups of images
    wins      share of images on which the setting is better, ties counting half
    """

    mean: float
    interval: tuple[float, float]
    wins: float


@dataclass(frozen=True)
class Compared:
    """One setting of a study.

    settings    those that vary, of its model
    runs        finished and scored
    of          runs that it has
    seeds       among the runs
    images      that they were scored on
    scores      mean over seeds of each seed's mean over images; None without a run
    sds         sample standard deviation over seeds; None with fewer than two
    by_seed     mean over images by seed and metric
    difference  to the baseline, by metric; None of the baseline, and where either has no run
    parameters  of its model; None without a run
    seconds     that its training took, mean over runs; None without a run
    ceiling     DSC of its store's tokenizer alone, on these images; None unless stores are compared
    """

    label: str
    settings: dict[str, Any]
    baseline: bool
    runs: int
    of: int
    seeds: int
    images: int
    scores: dict[str, float] | None
    sds: dict[str, float] | None
    by_seed: dict[int, dict[str, float]]
    difference: dict[str, Difference] | None
    parameters: int | None
    seconds: float | None
    ceiling: float | None


def compare(plan: Plan, results: pl.DataFrame) -> list[Compared]:
    """Every setting of a study against its baseline, in the order of the grid.

    The interval is of the images alone: of what other images of the kind would say of these very
    runs. What other seeds would say is in the standard deviations. Images of one group or twins are
    drawn together.

    results  as `lmm.study.results.collect` makes them
    source   the paired cluster bootstrap: see `lmm.metrics.summarise`
    """
    by_image = {
        place: _by_image(results.filter(setting=place)) for place in range(len(plan.grid.settings))
    }
    baseline, ceilings = by_image[plan.grid.baseline], _ceilings(plan, {*results["run"]})
    return [
        _compared(plan, place, results.filter(setting=place), images, baseline, ceilings)
        for place, images in by_image.items()
    ]


def _ceilings(plan: Plan, done: Collection[str]) -> dict[str, float]:
    """DSC of what a store's tokenizer alone gives, by its URL, as far as it was asked for."""
    scores = {
        run.store: _read(plan.out / run.scores_file)
        for run in plan.runs
        if run.name in done and "--ceiling" in run.evaluate
    }
    # Runs that were scored before stores were compared say nothing of it.
    return {store: one["ceiling"]["dsc"] for store, one in scores.items() if "ceiling" in one}


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def _by_image(of_setting: pl.DataFrame) -> pl.DataFrame:
    """Means over seeds: a row an image, in order of sample_id; of folds, each image has its own."""
    means = [pl.col(key).mean() for key in KEYS]
    return of_setting.group_by("sample_id", "group").agg(means).sort("sample_id")


def _compared(
    plan: Plan,
    place: int,
    rows: pl.DataFrame,
    images: pl.DataFrame,
    baseline: pl.DataFrame,
    ceilings: Mapping[str, float],
) -> Compared:
    by_seed = {
        seed: {key: float(of_seed[key].mean()) for key in KEYS}  # type: ignore[arg-type]
        for (seed,), of_seed in sorted(rows.partition_by("seed", as_dict=True).items())
    }
    values = {key: [of_seed[key] for of_seed in by_seed.values()] for key in KEYS}
    is_baseline = place == plan.grid.baseline
    done = {*rows["run"]}
    runs = [run for run in plan.runs if run.name in done]
    made = [_read(plan.out / run.summary_file) for run in runs]
    settings = plan.grid.settings[place]
    return Compared(
        label=label(settings, plan.grid.varied),
        settings={name: settings[name] for name in plan.grid.varied if name in settings},
        baseline=is_baseline,
        runs=rows["run"].n_unique(),
        of=sum(run.setting == place for run in plan.runs),
        seeds=len(by_seed),
        images=images.height,
        scores={key: float(np.mean(of)) for key, of in values.items()} if by_seed else None,
        sds={key: float(np.std(of, ddof=1)) for key, of in values.items()}
        if len(by_seed) > 1
        else None,
        by_seed=by_seed,
        difference=None if is_baseline else differences(images, baseline),
        parameters=made[0]["parameters"] if made else None,
        seconds=float(np.mean([one["seconds"] for one in made])) if made else None,
        ceiling=ceilings.get(runs[0].store) if runs else None,
    )


def differences(
    images: pl.DataFrame, baseline: pl.DataFrame, resamples: int = 10_000
) -> dict[str, Difference] | None:
    """What a setting scores more than the baseline, by metric; None without an image of both.

    images, baseline  sample_id, group, and the metrics, means over seeds
    """
    both = images.join(baseline, on=["sample_id", "group"], suffix="_baseline").sort("sample_id")
    if both.is_empty():
        return None
    pairs = {key: both[key].to_numpy() - both[f"{key}_baseline"].to_numpy() for key in KEYS}
    more = np.stack([pairs[key] for key in KEYS], axis=1)
    groups = both["group"].to_numpy()
    low, high = intervals_of_means(more, groups=groups, resamples=resamples)
    wins = _wins(pairs)
    return {
        key: Difference(float(pairs[key].mean()), (float(low[i]), float(high[i])), wins[key])
        for i, key in enumerate(KEYS)
    }


def _wins(pairs: Mapping[str, Floats]) -> dict[str, float]:
    better = {m.key: pairs[m.key] if m.higher_is_better else -pairs[m.key] for m in METRICS}
    return {key: float(np.mean((of > 0) + (of == 0) / 2)) for key, of in better.items()}
