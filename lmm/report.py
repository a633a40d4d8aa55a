"""One self-contained page for one or several runs: scores, curves, test images with contours."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import kornia.filters
import numpy as np
import polars as pl
import torch
from PIL import Image

from lmm.checkpoint import Run
from lmm.evaluate import predict_masks
from lmm.latents import load_latents
from lmm.metrics import score
from pipeline.encode import decode_sample
from pipeline.errors import ArtefactError, InputError
from pipeline.preview import contour
from pipeline.store import LatentStore, open_store

TRUTH, PREDICTION = (0, 166, 90), (255, 193, 7)
_WIDTH, _HEIGHT, _LEFT, _TOP = 306, 150, 44, 20  # the plot's place in the template's viewBox, px
_PICTURE_PX = 448


def build_report(runs: Sequence[Run], split: str, device: torch.device) -> tuple[str, list[Any]]:
    """The page as HTML, and the numbers of its table.

    raises  ArtefactError for a run that has not been scored on `split`
    """
    described = [_describe(run, split, device) for run in runs]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    title = described[0]["name"] if len(runs) == 1 else f"{len(runs)} runs"
    subtitle = "Generative Medical Segmentation from cached latents"
    page = environment.get_template("report.html.j2").render(
        title=title, subtitle=subtitle, runs=described
    )
    numbers = [
        {"run": str(run.path), **one["scores"], "otsu_dsc": one["otsu_dsc"]}
        for run, one in zip(runs, described, strict=True)
    ]
    return page, numbers


def _describe(run: Run, split: str, device: torch.device) -> dict[str, Any]:
    """Everything the template shows of one run."""
    if run.description["store"] is None:
        raise ArtefactError(f"{run.path} was imported and has no log", "report a run of train")
    store = open_store(run.description["store"]["url"])
    path = run.path / "evaluate" / f"{store.name}-{split}.parquet"
    if not path.exists():
        raise ArtefactError(
            f"{run.path} has not been scored on {split}",
            f"gms-lmm evaluate --run {run.path} --latents {store.url} --split {split}",
        )
    images = _images(store, split)
    return {
        "name": run.path.name,
        "scores": json.loads(path.with_suffix(".json").read_text()),
        "otsu_dsc": None if images is None else _otsu_dsc(store, split, images),
        "curves": _curves(run),
        "pictures": _pictures(run, store, split, pl.read_parquet(path), images, device),
        "facts": _facts(run, store),
    }


def _facts(run: Run, store: LatentStore) -> dict[str, Any]:
    settings = run.description["settings"]
    summary = run.summary()
    return {
        "store": f"{store.url}, {store.views} views at {store.size} px",
        "tokenizer": f"{store.tokenizer['name']} ({store.tokenizer['digest'][:12]})",
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "parameters": f"{summary['parameters']:,}",
        "training": f"{summary['steps']} steps in {summary['seconds']:.0f} s, "
        f"epoch {summary['best_epoch']} selected on {summary['select_on']}",
        "software": ", ".join(f"{k} {v}" for k, v in run.description["software"].items()),
    }


def _curves(run: Run) -> list[dict[str, Any]]:
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    select_on = run.description["settings"]["select_on"]
    titles = {"loss_total": ("training loss", 1.0), f"{select_on}_dsc": (f"{select_on} DSC %", 100)}
    return [
        _curve(title, [(line["epoch"], factor * line[key]) for line in log if key in line])
        for key, (title, factor) in titles.items()
    ]


def _curve(title: str, points: list[tuple[int, float]]) -> dict[str, Any]:
    """A polyline in the template's viewBox."""
    epochs, values = np.array(points, dtype=np.float64).T
    low, high = float(values.min()), float(values.max())
    x = _LEFT + _WIDTH * (epochs - epochs[0]) / max(1.0, epochs[-1] - epochs[0])
    y = _TOP + _HEIGHT * (high - values) / (high - low or 1.0)
    return {
        "title": title,
        "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)),
        "low": f"{low:.2f}",
        "high": f"{high:.2f}",
        "first": f"{values[0]:.2f}",
        "last": f"{values[-1]:.2f}",
        "from_epoch": int(epochs[0]),
        "to_epoch": int(epochs[-1]),
    }


def _images(store: LatentStore, split: str) -> dict[str, np.ndarray] | None:
    """Test images as ingested, by sample id; None where the archive is no longer there."""
    source = store.source()
    rows = store.samples.filter(pl.col("split") == split).to_dicts()
    try:
        return {row["sample_id"]: decode_sample(source, row, store.size)[0] for row in rows}
    except InputError:
        return None


def _otsu_dsc(store: LatentStore, split: str, images: dict[str, np.ndarray]) -> float:
    """Mean DSC of calling every pixel darker than Otsu's threshold of its image foreground."""
    latents = load_latents(store, split, views=1)
    assert latents.mask_bits is not None
    grey = torch.from_numpy(np.stack([images[i] for i in latents.sample_ids])).float().mean(-1)
    _, threshold = kornia.filters.otsu_threshold(grey.unsqueeze(1))
    dark = grey <= threshold.reshape(-1, 1, 1)
    return float(score(dark, latents.unpack(latents.mask_bits[0]))["dsc"].mean())


def _pictures(
    run: Run,
    store: LatentStore,
    split: str,
    per_image: pl.DataFrame,
    images: dict[str, np.ndarray] | None,
    device: torch.device,
) -> list[dict[str, Any]]:
    """The worst, median and best test image with both contours, as in the paper's Figure 2."""
    if images is None:
        return []
    ranked = per_image.sort("dsc", "sample_id")
    places = {"worst": 0, "median": (len(ranked) - 1) // 2, "best": len(ranked) - 1}
    chosen = [ranked["sample_id"][place] for place in places.values()]
    latents = load_latents(store, split, views=1, device=device)
    assert latents.mask_bits is not None
    rows = torch.tensor([latents.sample_ids.index(name) for name in chosen], device=device)
    predictions = predict_masks(run, store, latents, rows).cpu().numpy()
    truths = latents.unpack(latents.mask_bits[0, rows]).cpu().numpy()
    return [
        {
            "rank": rank,
            "sample_id": name,
            "dsc": ranked["dsc"][place],
            "png": _png(images[name], truths[i], predictions[i]),
        }
        for i, ((rank, place), name) in enumerate(zip(places.items(), chosen, strict=True))
    ]


def _png(image_u8: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> str:
    """Image with contours, enlarged so that a contour is a thin line; base64."""

    def enlarged(array: np.ndarray) -> np.ndarray:
        resample = Image.Resampling.NEAREST if array.dtype == bool else Image.Resampling.BICUBIC
        side = (_PICTURE_PX, _PICTURE_PX)
        return np.array(Image.fromarray(array).resize(side, resample))

    picture = enlarged(image_u8)
    picture[contour(enlarged(truth))] = TRUTH
    picture[contour(enlarged(prediction))] = PREDICTION
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "png")
    return base64.b64encode(content.getvalue()).decode()
