"""Runs of folds as one: for each seed the mean over the images of all folds, each scored once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmm.metrics import FLAGS, KEYS
from lmm.run import Run
from pipeline.errors import UsageError


def by_seed(scored: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means over the images of all folds together, one for each seed, in order of seed.

    scored   runs of equal settings but seed and fold, each with the summary of its own fold
    raises   UsageError when a seed has not exactly one run of each fold
    """
    seeds: dict[int, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run, summary in scored:
        seeds.setdefault(run.description["settings"]["seed"], []).append((run, summary))
    return [_of_all_folds(seed, of_seed) for seed, of_seed in sorted(seeds.items())]


def _of_all_folds(seed: int, scored: Sequence[tuple[Run, Mapping[str, Any]]]) -> dict[str, Any]:
    given = sorted(run.description["settings"]["fold"] for run, _ in scored)
    wanted = sorted(map(int, scored[0][1]["folds"]))
    if given != wanted:
        raise UsageError(
            f"seed {seed} has runs of folds {_listed(given)}; the store has {_listed(wanted)}",
            "give one run of each fold, scored by gms-lmm evaluate --split fold",
        )
    # Folds have no image in common, so that the mean of all is the folds' by their numbers.
    counts = [summary["n"] for _, summary in scored]
    means = {
        key: float(np.average([summary[key] for _, summary in scored], weights=counts))
        for key in KEYS
    }
    return means | {name: sum(one[name] for _, one in scored) for name in FLAGS.values()}


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
