"""One self-contained page for one or several runs: scores, images with contours, curves, recipe."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import kornia.filters
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from lmm.baseline.pixels import Images, Pixels, read_pixels
from lmm.evaluate import (
    average_in_words,
    find_scored,
    open_scored,
    read_averages,
    read_evaluations,
    read_per_image,
    read_table,
    where_scored,
)
from lmm.latents import Latents, load_latents
from lmm.metrics import HD95, METRICS, Metric, score, summarise
from lmm.report.charts import curves, histogram, sureness
from lmm.report.html import render
from lmm.report.pictures import (
    FULL_PX,
    caption,
    image_uri,
    images_of,
    outline,
    ranks,
    side_px,
)
from lmm.report.recipe import commands, facts
from lmm.report.tables import require_one_hd95
from lmm.run import Run
from lmm.run.lineage import seen_in_words
from lmm.splits import groups_of
from pipeline.errors import ArtefactError
from pipeline.images import ImageU8, Mask
from pipeline.store import LatentStore


@dataclass(frozen=True)
class Samples:
    """A split as the page shows it: what several runs scored on it have in common.

    source     the store that holds it, or the manifest
    truths     masks at its size, by sample id
    images_u8  images as ingested, by sample id; None where the archive is no longer there
    otsu       summary of what Otsu's threshold scores, None without the images
    """

    source: Images
    truths: dict[str, Mask]
    images_u8: dict[str, ImageU8] | None
    otsu: dict[str, Any] | None


def build_report(runs: Sequence[Run], split: str) -> tuple[str, list[dict[str, Any]]]:
    """The page as HTML, and the numbers of its table.

    It needs neither model nor tokenizer: the predictions are those that `evaluate` left.

    raises  ArtefactError for a run that has not been scored on `split`; UsageError when some were
            scored with another definition of HD95
    """
    evaluations = [_shown_first(run, split) for run in runs]
    hd95 = require_one_hd95([one for of_run in evaluations for one in of_run])
    shown = {where_scored(of_run[0]): of_run[0] for of_run in evaluations}
    samples = {url: _samples(open_scored(one), split, hd95) for url, one in shown.items()}
    urls = list(samples)
    described = [
        {
            "number": number,
            "samples_number": urls.index(where_scored(of_run[0])),
            **_describe(run, samples[where_scored(of_run[0])], of_run),
        }
        for number, (run, of_run) in enumerate(zip(runs, evaluations, strict=True))
    ]
    bounds = {url: _bounds(one, described) for url, one in samples.items()}
    for one in described:
        one["bounds"] = bounds[one["url"]]
    images = {
        f"{number}-{place}": uri
        for number, one in enumerate(samples.values())
        for place, uri in enumerate(_uris(one, described))
    }
    page = _render(described, list(bounds.values()), images)
    return page, [_numbers(one) for one in described]


def _shown_first(run: Run, split: str) -> list[dict[str, Any]]:
    """A run's evaluations, first the one whose store still holds what was scored."""
    evaluations = read_evaluations(run, split)
    for one in evaluations:
        if find_scored(run, open_scored(one), split).digest == one["images_digest"]:
            return [one, *(other for other in evaluations if other is not one)]
    last = evaluations[0]
    option = "latents" if last["store"] else "manifest"
    raise ArtefactError(
        f"{where_scored(last)} has changed since {run.path} was scored on its {split} images",
        f"gms-lmm evaluate --run {run.path} --{option} {where_scored(last)} --split {split}",
    )


def _bounds(samples: Samples, described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What any run on the samples lies between; the ceiling that one run has is that of all."""
    shown = [one["scores"] for one in described if one["url"] == samples.source.url]
    store = samples.source if isinstance(samples.source, LatentStore) else None
    return {
        "dataset": shown[0]["dataset"],
        "tokenizer": store and store.tokenizer["name"],
        "ceiling": next((scores["ceiling"] for scores in shown if "ceiling" in scores), None),
        "otsu": samples.otsu,
    }


def _render(
    described: list[dict[str, Any]], bounds: list[dict[str, Any]], images: Mapping[str, str]
) -> str:
    return render(
        "report.html.j2",
        title=described[0]["name"] if len(described) == 1 else f"{len(described)} runs",
        runs=described,
        all_bounds=bounds,
        metrics=METRICS,
        images=images,
        side=FULL_PX,
    )


def _numbers(one: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{name}_dsc": one["bounds"][name] for name in ("ceiling", "otsu")}
    bounds = {key: summary and summary["dsc"] for key, summary in found.items()}
    return {"run": one["path"], **one["scores"], **bounds}


def _describe(run: Run, samples: Samples, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything the template shows of one run."""
    source, scores = samples.source, evaluations[0]
    per_image = read_per_image(run, source, scores["split"])
    averages = read_averages(run, scores["split"])
    of_averages = chain.from_iterable(
        sureness(read_table(run, name), one) for name, one in averages.items()
    )
    rows = per_image.drop("prediction_png").sort("dsc", "sample_id").to_dicts()
    return {
        "name": run.path.name,
        "path": str(run.path),
        "url": source.url,
        "root": str(source.source().root),
        "scores": scores,
        "evaluations": [(one, _standing(run, one)) for one in (*evaluations, *averages.values())],
        "sureness": [*sureness(per_image, scores), *of_averages],
        "seen": seen_in_words(scores["seen"], scores["n"]),
        "is_baseline": run.is_baseline,
        "model": run.model_name,
        "parameters": _parameters(run),
        "seconds": None if run.imported else run.summary()["seconds"],
        "loss": run.loss,
        "curves": [] if run.imported else curves(run),
        "histogram": histogram(per_image["dsc"].to_numpy()),
        "ranks": ranks(per_image),
        "images": None if samples.images_u8 is None else _images(per_image, samples.truths),
        "columns": _columns(per_image),
        "rows": rows,
        "by_id": {row["sample_id"]: row for row in rows},
        "facts": facts(run, source),
        "commands": commands(run, source, scores),
    }


def _parameters(run: Run) -> int:
    return run.model().parameter_count if run.imported else int(run.summary()["parameters"])


def _standing(run: Run, scores: Mapping[str, Any]) -> str:
    """What a row of scores says of how its images stand to the run; nothing of those held out."""
    held_out = run.imported or scores["images_digest"] == run.held_out.get(scores["split"])
    seen = seen_in_words(scores["seen"], scores["n"])
    standing = seen or ("" if held_out else "not trained on")
    return ", ".join(filter(None, [average_in_words(scores), standing]))


def _columns(per_image: pl.DataFrame) -> list[tuple[str, str, Metric]]:
    """Key, label and metric of the columns that the table of every image has."""
    native = [metric for metric in METRICS if metric.native_column]
    columns = [(metric.key, metric.label, metric) for metric in METRICS]
    columns += [(f"native_{metric.key}", f"native {metric.label}", metric) for metric in native]
    return [column for column in columns if column[0] in per_image.columns]


def _images(per_image: pl.DataFrame, truths: Mapping[str, Mask]) -> dict[str, dict[str, Any]]:
    """By sample id: its number on the page, its caption, both contours as SVG paths."""
    return {
        row["sample_id"]: {
            "number": number,
            "caption": caption(row),
            "truth": outline(truths[row["sample_id"]]),
            "prediction": outline(np.array(Image.open(io.BytesIO(row["prediction_png"])))),
            "px": len(truths[row["sample_id"]]),
        }
        for number, row in enumerate(per_image.iter_rows(named=True))
    }


def _samples(source: Images, split: str, hd95: HD95) -> Samples:
    clean: Latents | Pixels = (
        load_latents(source, split, views=1)
        if isinstance(source, LatentStore)
        else read_pixels(source, split)
    )
    truths = dict(sorted(zip(clean.sample_ids, clean.clean_masks.numpy(), strict=True)))
    images = images_of(source, list(truths))
    groups = groups_of(source.samples, list(truths))
    otsu = None if images is None else _otsu(truths, images, groups, hd95)
    return Samples(source, truths, images, otsu)


def _otsu(
    truths: Mapping[str, Mask],
    images_u8: Mapping[str, ImageU8],
    groups: NDArray[np.int64],
    hd95: HD95,
) -> dict[str, Any]:
    """Scores of calling every pixel darker than Otsu's threshold of its image foreground."""
    grey = torch.from_numpy(np.stack([images_u8[name] for name in truths])).float().mean(-1)
    _, threshold = kornia.filters.otsu_threshold(grey.unsqueeze(1))
    dark = grey <= threshold.reshape(-1, 1, 1)
    scores = score(dark, np.stack(list(truths.values())), hd95=hd95)
    return summarise(scores, groups=groups)


def _uris(samples: Samples, described: Sequence[Mapping[str, Any]]) -> list[str]:
    """Images in order of sample id; those that stand out on the page are never made smaller."""
    if samples.images_u8 is None:
        return []
    shown = [one["ranks"] for one in described if one["url"] == samples.source.url]
    large = {name for of_run in shown for names in of_run.values() for name in names}
    size = samples.source.size
    small, full = side_px(len(samples.truths), size), min(size, FULL_PX)
    return [
        image_uri(samples.images_u8[name], full if name in large else small)
        for name in samples.truths
    ]
