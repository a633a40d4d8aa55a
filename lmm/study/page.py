"""The page of a study: which setting is better at a glance, curves, and images that tell them."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from lmm.latents import load_latents
from lmm.metrics import METRICS
from lmm.report.html import render
from lmm.report.pictures import FULL_PX, caption, image_uri, images_of, outline
from lmm.study.charts import curves, strips
from lmm.study.compare import Compared
from lmm.study.grid import MODEL, default_of
from lmm.study.names import shown
from lmm.study.plan import Plan, PlannedRun
from lmm.study.results import per_image
from lmm.study.tables import MAIN, signed
from pipeline.store import LatentStore, open_store

IMAGES = 8  # on which settings differ most
_ASSETS = Path(__file__).parent / "assets"


def build_page(plan: Plan, results: pl.DataFrame, compared: Sequence[Compared]) -> str:
    """The page as HTML: it needs neither model nor tokenizer, nor any other file.

    results   as `lmm.study.results.collect` gives them
    compared  as `lmm.study.compare.compare` does
    """
    scored = {*results["run"]}
    images = _images(plan, results, compared)
    return render(
        "study.html.j2",
        [_ASSETS],
        title=plan.grid.name,
        plan=plan,
        main=MAIN,
        metrics=METRICS,
        compared=compared,
        best=_best(compared),
        strips=strips(compared),
        curves=curves(plan),
        images=images,
        side=FULL_PX,
        missing=[run.name for run in plan.runs if run.name not in scored],
        groups=results["group"].n_unique(),
        facts=_facts(plan),
        signed=signed,
    )


def _best(compared: Sequence[Compared]) -> Compared | None:
    """The setting with the best mean; None without a score."""
    scored = [one for one in compared if one.scores]
    means = [one.scores[MAIN.key] for one in scored if one.scores]
    return scored[means.index(MAIN.best(means))] if scored else None


def _facts(plan: Plan) -> dict[str, str]:
    """What all runs of a study have in common, as far as it is not the default."""
    common = {
        name: shown(value)
        for one in plan.grid.settings
        for name, value in one.items()
        if name not in plan.grid.varied and value != default_of(name, one[MODEL])
    }
    repeats: dict[str, Sequence[int | None]] = {
        "Seeds": plan.grid.seeds,
        "Folds": plan.grid.folds,
    }
    said = {
        name: ", ".join(map(str, numbers)) for name, numbers in repeats.items() if numbers != [None]
    }
    named = [f"{name}: {url}" for name, url in plan.grid.stores.items()]
    stores = named or sorted({run.store for run in plan.runs})
    return {"Runs": str(len(plan.runs)), **said, **common, "Stores": ", ".join(stores)}


def _images(
    plan: Plan, results: pl.DataFrame, compared: Sequence[Compared]
) -> list[dict[str, Any]]:
    """The images on which settings differ most, as the baseline, the best and the worst see each.

    An image is shown as the first run of a setting that was scored on it has segmented it.
    """
    means = results.group_by("sample_id", "setting").agg(pl.col(MAIN.key).mean())
    if len(compared) < 2:
        return []
    span = pl.col(MAIN.key).max() - pl.col(MAIN.key).min()
    ranked = means.group_by("sample_id").agg(span.alias("span"))
    chosen = ranked.sort("span", "sample_id", descending=[True, False]).head(IMAGES)
    names = chosen.filter(pl.col("span") > 0)["sample_id"].to_list()
    store = open_store(plan.runs[0].store)
    images_u8, truths = images_of(store, names), _truths(plan, store)
    runs = {run.name: run for run in plan.runs}
    found = []
    for number, name in enumerate(names):
        of_image = results.filter(sample_id=name)
        settings = _telling(plan, means.filter(sample_id=name))
        pictures = [
            _picture(plan, runs, of_image.filter(setting=setting), name)
            | {"setting": compared[setting].label, "baseline": compared[setting].baseline}
            for setting in settings
        ]
        side = min(store.size, FULL_PX)
        uri = image_uri(images_u8[name], side) if images_u8 else None
        truth = outline(truths[name])
        found.append(
            {"name": name, "number": number, "uri": uri, "truth": truth, "pictures": pictures}
            | {"px": store.size}
        )
    return found


def _telling(plan: Plan, means: pl.DataFrame) -> list[int]:
    """Settings that an image is shown by: the baseline, the best on it and the worst, once each."""
    order = means.sort(MAIN.key, "setting", descending=[MAIN.higher_is_better, False])["setting"]
    places = [plan.grid.baseline] if plan.grid.baseline in order else []
    return list(dict.fromkeys([*places, order[0], order[-1]]))


def _picture(
    plan: Plan, runs: Mapping[str, PlannedRun], of_setting: pl.DataFrame, name: str
) -> dict[str, Any]:
    """The contour of a setting's first run on an image, and its scores."""
    run = runs[of_setting["run"][0]]
    row = per_image(plan.out, run).row(by_predicate=pl.col("sample_id") == name, named=True)
    mask = np.array(Image.open(io.BytesIO(row["prediction_png"])))
    return {"prediction": outline(mask), "caption": caption(row), "score": row[MAIN.key]}


def _truths(plan: Plan, store: LatentStore) -> dict[str, np.ndarray]:
    """Masks as stored of the images that are scored, by sample id."""
    truths: dict[str, np.ndarray] = {}
    for fold in plan.grid.folds:
        latents = load_latents(store, plan.grid.split, views=1, fold=fold)
        truths |= dict(zip(latents.sample_ids, latents.clean_masks.numpy(), strict=True))
    return truths
