"""One self-contained page for one or several runs: scores, images with contours, curves, recipe."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2
import kornia.filters
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from lmm.evaluate import (
    average_in_words,
    find_scored,
    read_averages,
    read_evaluations,
    read_per_image,
    read_table,
)
from lmm.evaluate.twins import groups_of
from lmm.latents import load_latents
from lmm.metrics import HD95, METRICS, Metric, score, summarise
from lmm.report.charts import curves, histogram, sureness
from lmm.report.pictures import FULL_PX, caption, image_uri, outline, ranks, side_px
from lmm.report.recipe import commands, facts
from lmm.report.tables import require_one_hd95, short_name
from lmm.run import Run
from lmm.run.lineage import seen_in_words
from pipeline.errors import ArtefactError, InputError
from pipeline.images import ImageU8, Mask
from pipeline.samples import original_images
from pipeline.store import LatentStore, open_store

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Samples:
    """A split of a store as the page shows it: what several runs on it have in common.

    truths     masks as stored, by sample id
    images_u8  images as ingested, by sample id; None where the archive is no longer there
    otsu       summary of what Otsu's threshold scores, None without the images
    """

    store: LatentStore
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
    urls = list(dict.fromkeys(of_run[0]["store"] for of_run in evaluations))
    samples = {url: _samples(open_store(url), split, hd95) for url in urls}
    described = [
        {
            "number": number,
            "samples_number": urls.index(of_run[0]["store"]),
            **_describe(run, samples[of_run[0]["store"]], of_run),
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
        if find_scored(run, open_store(one["store"]), split).digest == one["images_digest"]:
            return [one, *(other for other in evaluations if other is not one)]
    url = evaluations[0]["store"]
    raise ArtefactError(
        f"{url} has changed since {run.path} was scored on its {split} images",
        f"gms-lmm evaluate --run {run.path} --latents {url} --split {split}",
    )


def _bounds(samples: Samples, described: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What any run on the samples lies between; the ceiling that one run has is that of all."""
    shown = [one["scores"] for one in described if one["url"] == samples.store.url]
    return {
        "dataset": shown[0]["dataset"],
        "tokenizer": samples.store.tokenizer["name"],
        "ceiling": next((scores["ceiling"] for scores in shown if "ceiling" in scores), None),
        "otsu": samples.otsu,
    }


def _render(
    described: list[dict[str, Any]], bounds: list[dict[str, Any]], images: Mapping[str, str]
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short_name"] = short_name
    style, script = ((_ASSETS / f"report.{kind}").read_text() for kind in ("css", "js"))
    return environment.get_template("report.html.j2").render(
        title=described[0]["name"] if len(described) == 1 else f"{len(described)} runs",
        runs=described,
        all_bounds=bounds,
        metrics=METRICS,
        images=images,
        side=FULL_PX,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
    )


def _csp_hash(text: str) -> str:
    """What a content security policy calls an inline style or script that may be used."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _numbers(one: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{name}_dsc": one["bounds"][name] for name in ("ceiling", "otsu")}
    bounds = {key: summary and summary["dsc"] for key, summary in found.items()}
    return {"run": one["path"], **one["scores"], **bounds}


def _describe(run: Run, samples: Samples, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything the template shows of one run."""
    store, scores = samples.store, evaluations[0]
    per_image = read_per_image(run, store, scores["split"])
    averages = read_averages(run, scores["split"])
    of_averages = chain.from_iterable(
        sureness(read_table(run, name), one) for name, one in averages.items()
    )
    rows = per_image.drop("prediction_png").sort("dsc", "sample_id").to_dicts()
    return {
        "name": run.path.name,
        "path": str(run.path),
        "url": store.url,
        "root": store.attributes["root"],
        "scores": scores,
        "evaluations": [(one, _standing(run, one)) for one in (*evaluations, *averages.values())],
        "sureness": [*sureness(per_image, scores), *of_averages],
        "seen": seen_in_words(scores["seen"], scores["n"]),
        "loss": "imported" if run.imported else run.description["settings"]["loss"],
        "curves": [] if run.imported else curves(run),
        "histogram": histogram(per_image["dsc"].to_numpy()),
        "ranks": ranks(per_image),
        "images": None if samples.images_u8 is None else _images(per_image, samples.truths),
        "columns": _columns(per_image),
        "rows": rows,
        "by_id": {row["sample_id"]: row for row in rows},
        "facts": facts(run, store),
        "commands": commands(run, store, scores),
    }


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


def _samples(store: LatentStore, split: str, hd95: HD95) -> Samples:
    latents = load_latents(store, split, views=1)
    truths = dict(sorted(zip(latents.sample_ids, latents.clean_masks.numpy(), strict=True)))
    images = _images_u8(store, list(truths))
    groups = groups_of(store.samples, list(truths))
    otsu = None if images is None else _otsu(truths, images, groups, hd95)
    return Samples(store, truths, images, otsu)


def _images_u8(store: LatentStore, sample_ids: Sequence[str]) -> dict[str, ImageU8] | None:
    try:
        return dict(
            zip(sample_ids, original_images(store.source(), store.size, sample_ids), strict=True)
        )
    except InputError:
        return None


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
    shown = [one["ranks"] for one in described if one["url"] == samples.store.url]
    large = {name for of_run in shown for names in of_run.values() for name in names}
    size = samples.store.size
    small, full = side_px(len(samples.truths), size), min(size, FULL_PX)
    return [
        image_uri(samples.images_u8[name], full if name in large else small)
        for name in samples.truths
    ]
