"""Scores of a run on one split of a store: a table with one row an image, and a summary."""

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image

from lmm.checkpoint import Run, write_json
from lmm.decoder import THRESHOLD, MaskDecoder
from lmm.evaluate.ceiling import ceiling
from lmm.evaluate.native import Originals, as_columns
from lmm.latents import load_latents
from lmm.metrics import HD95, score, summarise
from lmm.selection import predict_latents
from lmm.student.file import student_of
from pipeline.errors import ArtefactError
from pipeline.store import LatentStore
from pipeline.telling import Progress
from pipeline.tokenizer import load_tokenizer_of


@dataclass(frozen=True)
class Evaluation:
    """What a run scores on a split.

    name       SAMPLES-SPLIT: what its files are called
    per_image  sample_id, dataset, class, dsc and iou (fractions), hd95 (px), missed, false_alarm;
               with the original masks also native_dsc, native_iou, native_hd95 (px of the original)
               and so on; prediction_png, the predicted mask at the store's size as a 1-bit PNG; in
               order of sample_id
    summary    keys as `gms-lmm evaluate --json` prints them
    masks      (n, H, W) bool, the predictions, in the same order
    """

    name: str
    per_image: pl.DataFrame
    summary: dict[str, Any]
    masks: np.ndarray


def evaluate(
    run: Run,
    store: LatentStore,
    split: str,
    device: torch.device,
    *,
    hd95: HD95 = "monai",
    native: bool = False,
    with_ceiling: bool = False,
    with_student: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Predict, decode with the frozen decoder and score every clean image of a split.

    LMM and decoder run in float32, whatever the run was trained in, so that scores of runs compare.

    hd95          definition of HD95; see `lmm.metrics.score`
    native        whether to score against the original masks at their own size as well
    with_ceiling  whether to add what the tokenizer alone scores; see `lmm.evaluate.ceiling.ceiling`
    with_student  whether to add what the masks of the run's student score
    progress      called with (decodes done, decodes in all): one an image, with the ceiling three
    raises        ArtefactError when the store was made with another tokenizer than the run was
                  trained on, or when a run without a student is asked for its; with `native`, as
                  `lmm.evaluate.native.Originals` does
    """
    require_same_latents(run, store)
    latents = load_latents(store, split, views=1, device=device)
    assert latents.mask_bits is not None
    # A store that has grown holds its samples in order of arrival.
    order = sorted(range(len(latents)), key=latents.sample_ids.__getitem__)
    rows = torch.tensor(order, device=device)
    ids = [latents.sample_ids[place] for place in order]
    originals = Originals(store, ids) if native else None
    student = student_of(run, device) if with_student else None
    masks: list[np.ndarray] = []
    native_scores: list[dict[str, Any]] = []
    decodes = len(ids) * (3 if with_ceiling else 1)
    decoder = MaskDecoder(load_tokenizer_of(store.tokenizer, device))
    z_mask_hat = predict_latents(run.model(device), latents, "fp32")[rows]
    for grey in decoder.greys(z_mask_hat):
        if originals:
            native_scores += originals.score(grey, len(masks), hd95)
        masks.extend((grey > THRESHOLD).cpu().numpy())
        if progress:
            progress(len(masks), decodes)
    predictions = np.stack(masks)
    truths = latents.unpack(latents.mask_bits[0, rows])
    scores = score(predictions, truths, hd95=hd95)
    columns = dict(scores)
    summary = {"split": split, **summarise(scores), **_what_was_scored(store, split, hd95)}
    if native:
        at_own_size = as_columns(native_scores)
        columns |= {f"native_{name}": values for name, values in at_own_size.items()}
        summary["native"] = summarise(at_own_size)
    if student:
        of_student = summarise(score(student.masks(z_mask_hat), truths, hd95=hd95))
        agreement = student.agreement(z_mask_hat, torch.from_numpy(predictions))
        summary["student"] = {**of_student, "agreement": agreement}
    if with_ceiling:
        after = progress and partial(_after, progress, len(ids))
        summary["ceiling"] = ceiling(store, split, device, after, hd95=hd95).summary
    per_image = _per_image(store, ids, columns, predictions)
    if by_class := _by_class(per_image, list(scores)):
        summary["by_class"] = by_class
    return Evaluation(evaluation_name(run, store, split), per_image, summary, predictions)


def _after(progress: Progress, before: int, done: int, total: int) -> None:
    progress(before + done, before + total)


def _per_image(
    store: LatentStore, ids: list[str], columns: dict[str, Any], predictions: np.ndarray
) -> pl.DataFrame:
    named = store.samples.select("sample_id", "dataset", "class")
    return (
        pl.DataFrame({"sample_id": ids})
        .join(named, on="sample_id", maintain_order="left")
        .with_columns(**{name: pl.Series(values) for name, values in columns.items()})
        .with_columns(prediction_png=pl.Series([mask_png(mask) for mask in predictions]))
    )


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


def _what_was_scored(store: LatentStore, split: str, hd95: HD95) -> dict[str, Any]:
    """What table and page say of scores beside them, and where the store is."""
    scored = store.samples.filter(pl.col("split") == split)
    return {
        "store": store.url,
        "hd95_definition": hd95,
        "dataset": ", ".join(sorted(scored["dataset"].unique())),
        "tokenizer": store.tokenizer["name"],
        "size": store.size,
        "manifest_digest": store.attributes["manifest_digest"],
    }


def _by_class(per_image: pl.DataFrame, columns: list[str]) -> dict[str, Any]:
    parts = per_image.group_by("class", maintain_order=True)
    means = {
        str(name): _means(summarise({key: part[key].to_numpy() for key in columns}))
        for (name,), part in parts
        if name is not None
    }
    return dict(sorted(means.items()))


def _means(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in ("n", "dsc", "iou", "hd95")}


def require_same_latents(run: Run, store: LatentStore) -> None:
    """Raise ArtefactError unless the run's model maps latents of the kind the store holds."""
    fix = "evaluate on a store made with the tokenizer the run was trained on"
    trained, stored = run.tokenizer, store.tokenizer
    if trained is not None and trained["digest"] != stored["digest"]:
        raise ArtefactError(
            f"{run.path} was trained on latents of {trained['name']!r} ({trained['digest'][:12]}), "
            f"{store.url} holds those of {stored['name']!r} ({stored['digest'][:12]})",
            fix,
        )
    channels = run.description["model"]["latent_channels"]
    if channels != store.latent_shape[0]:
        raise ArtefactError(
            f"{run.path} maps latents of {channels} channels, "
            f"{store.url} has {store.latent_shape[0]}",
            fix,
        )
    own = run.description["store"]
    if own is not None and own["size"] != store.size:
        raise ArtefactError(
            f"{run.path} was trained at {own['size']} px, {store.url} is at {store.size} px", fix
        )


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write NAME.parquet and NAME.json into `folder`; returns the parquet's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{evaluation.name}.parquet"
    partial = folder / f"{evaluation.name}.parquet.partial"
    evaluation.per_image.write_parquet(partial)
    partial.replace(path)
    write_json(folder / f"{evaluation.name}.json", evaluation.summary)
    return path


def mask_png(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as a 1-bit PNG."""
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "png")
    return content.getvalue()


def write_masks(evaluation: Evaluation, folder: Path) -> None:
    """Write each predicted mask as FOLDER/sample_id.png, 0 and 255, at the store's size."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(evaluation.per_image["sample_id"], evaluation.masks, strict=True):
        # A sample id comes from a file stem and holds no separator.
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")
