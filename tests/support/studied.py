"""A study whose runs were never trained: folders as training and evaluation leave them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lmm.evaluate.files import mask_png
from lmm.latents import load_latents
from lmm.metrics import score
from lmm.study import Plan, make_plan, read_grid
from lmm.study.plan import write_plan
from pipeline.store import open_store

EPOCHS = 6


def grid_file(folder: Path, **grid: Any) -> Path:
    """A grid in a file of its own; JSON is YAML."""
    file = folder / "grid.yaml"
    file.write_text(json.dumps(grid))
    return file


def fabricate(plan: Plan, shift_px: dict[int, int] | None = None) -> Plan:
    """Every run of a plan as if trained and scored: masks are the true ones, moved to the right.

    shift_px  by how much those of a setting are; else by its place, and all by a little of the seed
    """
    write_plan(plan)
    for run in plan.runs:
        folder = plan.out / "runs" / run.name
        (folder / "evaluate").mkdir(parents=True)
        store = open_store(run.store)
        latents = load_latents(store, plan.grid.split, views=1, fold=run.fold)
        truths = dict(sorted(zip(latents.sample_ids, latents.clean_masks.numpy(), strict=True)))
        shift = (shift_px or {}).get(run.setting, run.setting) + run.seed % 2
        masks = np.stack([np.roll(truth, shift, axis=1) for truth in truths.values()])
        scores = score(masks, np.stack(list(truths.values())))
        table = pl.DataFrame({"sample_id": list(truths), **scores})
        png = pl.Series([mask_png(mask) for mask in masks])
        lines = [
            {
                "epoch": epoch,
                "seconds": 10.0 * epoch,
                "val_dsc": 0.9 - 1 / (epoch + 1 + run.seed) - 0.002 * run.setting,
            }
            for epoch in range(1, EPOCHS + 1)
        ]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        costs = {"parameters": 1000 * (1 + run.setting), "seconds": 60.0 + run.seed}
        (folder / "summary.json").write_text(json.dumps(costs))
        parquet = (plan.out / run.scores_file).with_suffix(".parquet")
        table.with_columns(prediction_png=png).write_parquet(parquet)
        ceiling = {"ceiling": {"dsc": 0.99}} if "--ceiling" in run.evaluate else {}
        (plan.out / run.scores_file).write_text(json.dumps(ceiling))
    return plan


def fabricated(folder: Path, url: str, **grid: Any) -> Plan:
    """A fabricated study of a grid on a store."""
    return fabricate(make_plan(read_grid(grid_file(folder, **grid)), folder / "study", url))
