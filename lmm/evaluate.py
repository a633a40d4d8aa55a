"""Scores of a run on one split of a store: a table with one row an image, and a summary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL import Image

from lmm.checkpoint import Run, write_json
from lmm.decoder import MaskDecoder
from lmm.latents import Latents, load_latents
from lmm.metrics import score, summarise
from lmm.train import predict_latents
from pipeline.errors import ArtefactError
from pipeline.store import LatentStore
from pipeline.tokenizer import load_tokenizer_of


@dataclass(frozen=True)
class Evaluation:
    """What a run scores on a split.

    per_image  sample_id, dataset, class, dsc and iou (fractions), hd95 (px), missed, false_alarm;
               in order of sample_id
    summary    keys as `gms-lmm evaluate --json` prints them
    masks      (n, H, W) bool, the predictions, in the same order
    """

    per_image: pl.DataFrame
    summary: dict[str, Any]
    masks: np.ndarray


def evaluate(run: Run, store: LatentStore, split: str, device: torch.device) -> Evaluation:
    """Predict, decode with the frozen decoder and score every clean image of a split.

    LMM and decoder run in float32, whatever the run was trained in, so that scores of runs compare.

    raises  ArtefactError when the store was made with another tokenizer than the run was trained on
    """
    require_same_latents(run, store)
    latents = load_latents(store, split, views=1, device=device)
    assert latents.mask_bits is not None
    # A store that has grown holds its samples in order of arrival.
    order = sorted(range(len(latents)), key=latents.sample_ids.__getitem__)
    rows = torch.tensor(order, device=device)
    masks = predict_masks(run, store, latents, rows).cpu()
    truths = latents.unpack(latents.mask_bits[0, rows]).cpu()
    scores = score(masks, truths)
    ids = pl.DataFrame({"sample_id": [latents.sample_ids[place] for place in order]})
    named = store.samples.select("sample_id", "dataset", "class")
    per_image = ids.join(named, on="sample_id", maintain_order="left").with_columns(
        **{name: pl.Series(values) for name, values in scores.items()}
    )
    summary = {"split": split, **summarise(scores)}
    by_class = {
        str(name): _means(summarise({key: part[key].to_numpy() for key in scores}))
        for (name,), part in per_image.group_by("class", maintain_order=True)
        if name is not None
    }
    if by_class:
        summary["by_class"] = dict(sorted(by_class.items()))
    return Evaluation(per_image, summary, masks.numpy())


def predict_masks(
    run: Run, store: LatentStore, latents: Latents, rows: torch.Tensor
) -> torch.Tensor:
    """Predictions for the clean images of some rows of a split: (len(rows), H, W) bool."""
    decoder = MaskDecoder(load_tokenizer_of(store.tokenizer, latents.device))
    z_mask_hat = predict_latents(run.model(latents.device), latents, "fp32")
    return decoder.masks(z_mask_hat[rows])


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


def write_evaluation(evaluation: Evaluation, folder: Path, store_name: str) -> Path:
    """Write STORE-SPLIT.parquet and STORE-SPLIT.json into `folder`; returns the parquet's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{store_name}-{evaluation.summary['split']}.parquet"
    partial = path.with_suffix(".partial")
    evaluation.per_image.write_parquet(partial)
    partial.replace(path)
    write_json(path.with_suffix(".json"), evaluation.summary)
    return path


def write_masks(evaluation: Evaluation, folder: Path) -> None:
    """Write each predicted mask as FOLDER/sample_id.png, 0 and 255, at the store's size."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(evaluation.per_image["sample_id"], evaluation.masks, strict=True):
        # A sample id comes from a file stem and holds no separator.
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")
