"""Scores of a run on disk: what their files are called, and how they are written and found."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from lmm.run import Run, write_json
from pipeline.errors import ArtefactError
from pipeline.files import replacing
from pipeline.store import LatentStore

FOLDER = "evaluate"  # of a run


def evaluation_name(run: Run, store: LatentStore, split: str) -> str:
    """What the files of an evaluation are called: STORE-SPLIT for the samples trained on.

    Other samples, and all under imported weights, are STORE-DIGEST-SPLIT, with the manifest's
    digest: stores of two data sets may bear one name, and neither overwrites the other.
    """
    own = run.description["store"]
    digest = store.attributes["manifest_digest"]
    if own is not None and own["receipt"]["manifest_digest"] == digest:
        return f"{store.name}-{split}"
    return f"{store.name}-{digest[:8]}-{split}"


def write_scores(folder: Path, name: str, per_image: pl.DataFrame, summary: dict[str, Any]) -> Path:
    """Write NAME.parquet and NAME.json into `folder`; returns the parquet's path."""
    path = folder / f"{name}.parquet"
    with replacing(path) as partial:
        per_image.write_parquet(partial)
    write_json(folder / f"{name}.json", summary)
    return path


def read_evaluations(run: Run, split: str) -> list[dict[str, Any]]:
    """The summaries that `evaluate` left in a run for a split, the samples trained on first.

    One for each set of samples, the last written: a store may have been renamed in between.

    raises  ArtefactError when there is none, or one of an earlier version
    """
    found = (run.path / FOLDER).glob(f"*-{split}.json")
    files = sorted(found, key=lambda file: (file.stat().st_mtime_ns, file.name))
    summaries = [json.loads(file.read_text()) for file in files]
    own = run.description["store"]
    url = "STORE" if own is None else own["url"]
    fix = f"gms-lmm evaluate --run {run.path} --latents {url} --split {split}"
    if not files:
        raise ArtefactError(f"{run.path} has not been scored on {split}", fix)
    old = [file for file, one in zip(files, summaries, strict=True) if "store" not in one]
    if old:
        raise ArtefactError(f"{old[0]} does not say which store it scored", fix)
    digest = None if own is None else own["receipt"]["manifest_digest"]
    last = {one["manifest_digest"]: one for one in summaries}
    return sorted(last.values(), key=lambda one: (one["manifest_digest"] != digest, one["dataset"]))


def read_per_image(run: Run, store: LatentStore, split: str) -> pl.DataFrame:
    """The table, one row an image, that `evaluate` left in a run for a split of a store."""
    return pl.read_parquet(run.path / FOLDER / f"{evaluation_name(run, store, split)}.parquet")


def mask_png(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as a 1-bit PNG."""
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "png")
    return content.getvalue()
