"""One self-contained page for one or several runs: scores, images with contours, curves, recipe."""

import base64
import hashlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import kornia.filters
import numpy as np
import polars as pl
import torch
from PIL import Image

from lmm.checkpoint import Run
from lmm.evaluate import evaluation_name
from lmm.latents import load_latents
from lmm.metrics import score
from lmm.report_charts import curves, histogram
from lmm.report_pictures import FULL_PX, captions, image_uri, outline, ranks, side_px
from lmm.tables import read_evaluations
from pipeline.errors import ArtefactError, InputError
from pipeline.images import ImageU8, Mask
from pipeline.samples import original_images
from pipeline.store import LatentStore, open_store

COLUMNS = {
    "dsc": "DSC %",
    "iou": "IoU %",
    "hd95": "HD95 px",
    "native_dsc": "native DSC %",
    "native_hd95": "native HD95 px",
}
_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Samples:
    """A split of a store as the page shows it: what several runs on it have in common.

    truths    masks as stored, by sample id
    images_u8 images as ingested, by sample id; None where the archive is no longer there
    otsu_dsc  mean DSC of Otsu's threshold, None without the images
    """

    store: LatentStore
    truths: dict[str, Mask]
    images_u8: dict[str, ImageU8] | None
    otsu_dsc: float | None


def build_report(runs: Sequence[Run], split: str) -> tuple[str, list[dict[str, Any]]]:
    """The page as HTML, and the numbers of its table.

    It needs neither model nor tokenizer: the predictions are those that `evaluate` left.

    raises  ArtefactError for a run that has not been scored on `split`
    """
    described: list[dict[str, Any]] = []
    samples: dict[str, Samples] = {}
    for run in runs:
        if run.description["store"] is None:
            raise ArtefactError(f"{run.path} was imported and has no log", "report a run of train")
        evaluations = read_evaluations(run, split)
        url = run.description["store"]["url"]
        if url not in samples:
            samples[url] = _samples(open_store(url), split)
        described.append(_describe(run, split, samples[url], evaluations))
    for number, one in enumerate(described):
        one["number"] = number
        one["samples_number"] = list(samples).index(one["url"])
    images = {
        f"{number}-{place}": uri
        for number, one in enumerate(samples.values())
        for place, uri in enumerate(_uris(one, described))
    }
    return _render(described, images), [_numbers(one) for one in described]


def _render(described: list[dict[str, Any]], images: Mapping[str, str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_ASSETS / f"report.{kind}").read_text() for kind in ("css", "js"))
    return environment.get_template("report.html.j2").render(
        title=described[0]["name"] if len(described) == 1 else f"{len(described)} runs",
        runs=described,
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
    return {"run": one["path"], **one["scores"], "otsu_dsc": one["otsu_dsc"]}


def _describe(
    run: Run, split: str, samples: Samples, evaluations: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything the template shows of one run."""
    store = samples.store
    path = run.path / "evaluate" / f"{evaluation_name(run, store, split)}.parquet"
    if not path.exists():
        raise ArtefactError(
            f"{run.path} has not been scored on {split} of {store.url}",
            f"gms-lmm evaluate --run {run.path} --latents {store.url} --split {split}",
        )
    per_image = pl.read_parquet(path)
    scores = json.loads(path.with_suffix(".json").read_text())
    others = [one for one in evaluations if one["manifest_digest"] != scores["manifest_digest"]]
    rows = per_image.drop("prediction_png").sort("dsc", "sample_id").to_dicts()
    return {
        "name": run.path.name,
        "path": str(run.path),
        "url": store.url,
        "root": store.attributes["root"],
        "scores": scores,
        "evaluations": [scores, *others],
        "settings": run.description["settings"],
        "otsu_dsc": samples.otsu_dsc,
        "curves": curves(run),
        "histogram": histogram(per_image["dsc"].to_numpy()),
        "ranks": ranks(per_image),
        "images": None if samples.images_u8 is None else _images(per_image, samples.truths),
        "columns": [(key, label) for key, label in COLUMNS.items() if key in per_image.columns],
        "rows": rows,
        "by_id": {row["sample_id"]: row for row in rows},
        "facts": _facts(run, store),
        "commands": _commands(run, store, scores),
    }


def _images(per_image: pl.DataFrame, truths: Mapping[str, Mask]) -> dict[str, dict[str, Any]]:
    """By sample id: its number on the page, its caption, both contours as SVG paths."""
    return {
        row["sample_id"]: {
            "number": number,
            "caption": captions(row),
            "truth": outline(truths[row["sample_id"]]),
            "prediction": outline(np.array(Image.open(io.BytesIO(row["prediction_png"])))),
            "px": len(truths[row["sample_id"]]),
        }
        for number, row in enumerate(per_image.iter_rows(named=True))
    }


def _samples(store: LatentStore, split: str) -> Samples:
    latents = load_latents(store, split, views=1)
    assert latents.mask_bits is not None
    masks = latents.unpack(latents.mask_bits[0]).numpy()
    truths = dict(sorted(zip(latents.sample_ids, masks, strict=True)))
    images = _images_u8(store, list(truths))
    otsu_dsc = None if images is None else _otsu_dsc(truths, images)
    return Samples(store, truths, images, otsu_dsc)


def _images_u8(store: LatentStore, sample_ids: Sequence[str]) -> dict[str, ImageU8] | None:
    try:
        return dict(zip(sample_ids, original_images(store, sample_ids), strict=True))
    except InputError:
        return None


def _otsu_dsc(truths: Mapping[str, Mask], images_u8: Mapping[str, ImageU8]) -> float:
    """Mean DSC of calling every pixel darker than Otsu's threshold of its image foreground."""
    grey = torch.from_numpy(np.stack([images_u8[name] for name in truths])).float().mean(-1)
    _, threshold = kornia.filters.otsu_threshold(grey.unsqueeze(1))
    dark = grey <= threshold.reshape(-1, 1, 1)
    return float(score(dark, np.stack(list(truths.values())))["dsc"].mean())


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


def _facts(run: Run, store: LatentStore) -> dict[str, str]:
    """What was done, with what: names, counts, versions, digests."""
    summary, receipt = run.summary(), run.description["store"]["receipt"]
    tokenizer = run.description["tokenizer"]
    counts = ", ".join(f"{count} {split}" for split, count in receipt["by_split"].items())
    settings = _given(run.description["settings"])
    return {
        "Data": f"{store.name}: {receipt['samples']} samples ({counts})",
        "Tokenizer": f"{tokenizer['name']}, {tokenizer['kind']}, frozen",
        "Views": f"{receipt['views']} a sample at {store.size} × {store.size} px",
        "Model": f"latent mapping model, {summary['parameters']:,} parameters",
        "Settings": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings.items()),
        "Training": f"{summary['steps']:,} steps in {summary['seconds']:,.0f} s; epoch "
        f"{summary['best_epoch']} of {summary['epochs']} chosen by DSC on {summary['select_on']}",
        "Software": ", ".join(f"{k} {v}" for k, v in run.description["software"].items()),
        "Tokenizer digest": tokenizer["digest"],
        "Manifest digest": receipt["manifest_digest"],
        "Store digest": receipt["config_digest"],
    }


def _commands(run: Run, store: LatentStore, scores: Mapping[str, Any]) -> list[str]:
    """The commands that do it again; MANIFEST is what `gms-lmm ingest` writes."""
    made = store.attributes
    encode: dict[str, Any] = {
        "tokenizer": made["tokenizer"]["name"],
        "views": made["views"],
        "size": store.size,
        "seed": made["seed"],
        "precision": made["preprocessing"]["precision"],
    }
    train = {"latents": store.url, "out": run.path, **run.description["settings"]}
    evaluate: dict[str, Any] = {"run": run.path, "latents": store.url, "split": scores["split"]}
    evaluate["hd95"] = scores["hd95_definition"]
    evaluate["native"] = "native" in scores
    return [
        f"gms-lmm encode MANIFEST {shlex.quote(store.url)}{_options(encode)}",
        f"gms-lmm train{_options(train)}",
        f"gms-lmm evaluate{_options(evaluate)}",
    ]


def _options(settings: Mapping[str, Any]) -> str:
    """Settings as options of a command: a switch that is on has no value."""
    words = ""
    for key, value in _given(settings).items():
        of = "" if value is True else f" {shlex.quote(str(value))}"
        words += f" --{key.replace('_', '-')}{of}"
    return words


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those left open and switches that are off."""
    return {k: v for k, v in settings.items() if v is not None and v is not False}
