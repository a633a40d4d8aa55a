"""Scores of every image in every run of a study, as one table."""

from pathlib import Path

import polars as pl

from lmm.metrics import FLAGS, KEYS
from lmm.splits import groups_of
from lmm.study.plan import Plan, PlannedRun
from pipeline.errors import ArtefactError
from pipeline.store import open_store


def collect(plan: Plan) -> pl.DataFrame:
    """A row a run, split and image, of the runs that are finished and scored.

    returns  run; setting, its place in the grid; the settings that vary; seed, fold, split,
             sample_id; group, the number of what images of one group or twins have in common; dsc
             and iou (fractions), hd95 (px), missed, empty, false_alarm
    raises   ArtefactError when no run has been scored
    """
    done = [run for run in plan.runs if plan.done(run)]
    if not done:
        raise ArtefactError(
            f"no run of {plan.out} has been scored", "run the study again; its logs say more"
        )
    rows = pl.concat([_rows(plan, run) for run in done], how="vertical_relaxed")
    ids = rows["sample_id"].unique().sort().to_list()
    # The plan has seen to it that all stores hold the same images.
    numbers = groups_of(open_store(done[0].store).samples, ids)
    groups = pl.DataFrame({"sample_id": ids, "group": numbers})
    rows = rows.join(groups, on="sample_id", maintain_order="left")
    scores = (*KEYS, *FLAGS)
    return rows.select(pl.exclude("group", *scores), "group", *scores)


def per_image(out: Path, run: PlannedRun) -> pl.DataFrame:
    """What `evaluate` left of a run's images."""
    return pl.read_parquet((out / run.scores_file).with_suffix(".parquet"))


def _rows(plan: Plan, run: PlannedRun) -> pl.DataFrame:
    settings = plan.grid.settings[run.setting]
    said = {
        "run": pl.lit(run.name),
        "setting": pl.lit(run.setting, pl.Int32),
        **{name: pl.lit(settings.get(name)) for name in plan.grid.varied},
        "seed": pl.lit(run.seed, pl.Int64),
        "fold": pl.lit(run.fold, pl.Int32),
        "split": pl.lit(plan.grid.split),
    }
    columns = [value.alias(name) for name, value in said.items()]
    return per_image(plan.out, run).select(*columns, "sample_id", *KEYS, *FLAGS)
