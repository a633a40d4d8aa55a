"""Scores of a run on one split of a store: a table with one row an image, and a summary."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from lmm.baseline.network import network_of
from lmm.baseline.pixels import Images, read_pixels
from lmm.decoder import THRESHOLD
from lmm.evaluate.ceiling import ceiling_of
from lmm.evaluate.cells import Cells, PixelCells, read_cells
from lmm.evaluate.files import Scored, find_scored, mask_png, require_unseen, write_scores
from lmm.evaluate.native import Originals, file_of
from lmm.evaluate.scorable import require_scorable
from lmm.evaluate.twins import twins_in_train
from lmm.metrics import HD95, KEYS, Scores, score, summarise
from lmm.run import Run
from lmm.splits import FOLD, digests_of_folds, groups_of
from lmm.student.file import student_of
from lmm.student.network import StudentDecoder
from pipeline.files import replace_file
from pipeline.store import LatentStore
from pipeline.telling import Progress, ticking


@dataclass(frozen=True)
class Wanted:
    """What an evaluation is to hold beside the scores of the run's masks at the store's size.

    hd95     definition of HD95; see `lmm.metrics.score`
    native   scores against the original masks at their own size
    ceiling  what the tokenizer alone scores; see `lmm.evaluate.ceiling.ceiling`
    student  what the masks of the run's student score
    """

    hd95: HD95 = "monai"
    native: bool = False
    ceiling: bool = False
    student: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What a run scores on a split.

    name       SAMPLES-SPLIT: what its files are called
    per_image  sample_id, dataset, class, dsc and iou (fractions), hd95 (px), missed, empty,
               false_alarm;
               with the original masks also native_dsc, native_iou, native_hd95 (px of the original)
               and so on; twin_in_train, whether the run was trained on a twin, where the store
               knows of twins and the run what it has seen; prediction_png, the predicted mask
               at the store's size as a 1-bit PNG; in
               order of sample_id
    summary    keys as `gms-lmm evaluate --json` prints them
    masks      (n, H, W) bool, the predictions, in the same order
    native     with the original masks, the predictions at their size as `predict` writes them: PNG
               files of 0 and 255; else None
    """

    name: str
    per_image: pl.DataFrame
    summary: dict[str, Any]
    masks: np.ndarray
    native: list[bytes] | None = None


@dataclass(frozen=True)
class Predicted:
    """What a model makes of cells, in order of sample_id.

    z_mask_hat  (n, C, h, w) float32, scaled; None of a network in pixels
    masks       (n, H, W) bool: grey maps above 0.5
    """

    z_mask_hat: torch.Tensor | None
    masks: np.ndarray


SCORES_ALONE = Wanted()


def evaluate(
    run: Run,
    images: Images,
    split: str,
    device: torch.device,
    wanted: Wanted = SCORES_ALONE,
    progress: Progress | None = None,
    *,
    allow_seen: bool = False,
) -> Evaluation:
    """Predict, decode with the frozen decoder and score every clean image of a split.

    LMM and decoder run in float32, whatever the run was trained in, so that scores of runs compare;
    so does the network of a baseline, which reads the images themselves.

    images      a store; for a baseline also a manifest at the run's size
    progress    called with (decodes done, decodes in all): one an image, with the ceiling three
    allow_seen  score images that the run was trained or selected on, and say so in name and summary
    raises      ArtefactError when the store was made with another tokenizer than the run was
                trained on, when the run has seen any of the images, or when a run without a student
                is asked for its; as `read_cells` does; with native scores, as
                `lmm.evaluate.native.Originals` does
    """
    require_scorable(run, images, more=wanted.ceiling or wanted.student)
    scored = find_scored(run, images, split)
    if not allow_seen:
        require_unseen(run, images, split, scored)
    cells: Cells | PixelCells
    model: nn.Module
    if isinstance(images, LatentStore) and not run.is_baseline:
        cells, model = read_cells(images, [split], device, run.fold), run.model(device)
    else:
        cells, model = PixelCells(read_pixels(images, split, run.fold)), network_of(run, device)
    ids = [cells.sample_ids[place] for place in cells.order]
    originals = Originals(images, ids, wanted.hd95) if wanted.native else None
    student = student_of(run, device) if wanted.student else None
    tick = ticking(progress, len(cells) * (3 if wanted.ceiling else 1))

    def look(greys: torch.Tensor) -> None:
        if originals:
            originals.score(greys)
        tick(len(greys))

    predicted = predict(model, cells, look)
    truths = cells.truths[cells.order]
    scores = score(predicted.masks, truths, hd95=wanted.hd95)
    columns = dict(scores)
    groups = groups_of(images.samples, ids)
    summary = {
        "split": split,
        **summarise(scores, groups=groups),
        **_what_was_scored(run, images, scored, wanted.hd95),
    }
    if split == FOLD:
        summary["folds"] = digests_of_folds(images.samples)
    if originals:
        columns |= {f"native_{name}": values for name, values in originals.scores.items()}
        summary["native"] = summarise(originals.scores, groups=groups)
    if student:
        summary["student"] = _of_student(student, predicted, truths, groups, wanted.hd95)
    if wanted.ceiling:
        assert isinstance(cells, Cells), "require_scorable has asked for it"
        summary["ceiling"] = ceiling_of(cells, split, tick, wanted.hd95).summary
    twins = twins_in_train(run.lineage(), images.samples, ids)
    if twins is not None:
        columns["twin_in_train"] = twins
        if twins.any():
            summary["without_twins"] = _of_some(~twins, scores, groups)
    per_image = _per_image(images, ids, columns, predicted.masks)
    if by_class := _by_class(per_image, list(scores)):
        summary["by_class"] = by_class
    native = originals.predictions if originals else None
    return Evaluation(scored.name, per_image, summary, predicted.masks, native)


def predict(
    model: nn.Module,
    cells: Cells | PixelCells,
    look: Callable[[torch.Tensor], None] | None = None,
) -> Predicted:
    """Predict in float32 and decode with the frozen decoder.

    model  z_image → {"out": Ẑ_M, …}, both (B, C, h, w) and scaled; of pixels a network as
           `lmm.baseline.network.build_network` gives it, which needs no decoder
    look   called with grey maps (≤ n, H, W) in [0, 1], some at a time, in order of sample_id
    """
    z_mask_hat, maps = cells.predicted(model)
    masks = []
    for greys in maps:
        masks.append((greys > THRESHOLD).cpu().numpy())
        if look:
            look(greys)
    return Predicted(z_mask_hat, np.concatenate(masks))


def _of_some(chosen: np.ndarray, scores: Scores, groups: np.ndarray) -> dict[str, Any] | None:
    """The summary of some of the images; None where there is none."""
    if not chosen.any():
        return None
    return summarise({key: of[chosen] for key, of in scores.items()}, groups=groups[chosen])


def _of_student(
    student: StudentDecoder,
    predicted: Predicted,
    truths: torch.Tensor,
    groups: np.ndarray,
    hd95: HD95,
) -> dict[str, Any]:
    """What a student's masks score, and how well they agree with those of the frozen decoder."""
    assert predicted.z_mask_hat is not None, "a run with a student maps latents"
    masks = student.masks(predicted.z_mask_hat)
    scores = summarise(score(masks, truths, hd95=hd95), groups=groups)
    agreement = student.agreement(predicted.z_mask_hat, torch.from_numpy(predicted.masks))
    return {**scores, "agreement": agreement}


def _per_image(
    images: Images, ids: list[str], columns: dict[str, Any], predictions: np.ndarray
) -> pl.DataFrame:
    named = images.samples.select("sample_id", "dataset", "class")
    return (
        pl.DataFrame({"sample_id": ids})
        .join(named, on="sample_id", maintain_order="left")
        .with_columns(**{name: pl.Series(values) for name, values in columns.items()})
        .with_columns(prediction_png=pl.Series([mask_png(mask) for mask in predictions]))
    )


def _what_was_scored(run: Run, images: Images, scored: Scored, hd95: HD95) -> dict[str, Any]:
    """What table and page say of scores beside them, and where the images are."""
    store = images if isinstance(images, LatentStore) else None
    return {
        "store": store and store.url,
        **({} if store else {"manifest": images.url}),
        "hd95_definition": hd95,
        "dataset": ", ".join(sorted(scored.samples["dataset"].unique())),
        "tokenizer": None if run.is_baseline or not store else store.tokenizer["name"],
        "size": images.size,
        "images_digest": scored.digest,
        "seen": scored.counts,
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
    return {key: summary[key] for key in ("n", *KEYS)}


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write NAME.parquet and NAME.json into `folder`; returns the parquet's path."""
    return write_scores(folder, evaluation.name, evaluation.per_image, evaluation.summary)


def write_masks(evaluation: Evaluation, folder: Path) -> None:
    """Write each predicted mask as FOLDER/sample_id.png, 0 and 255.

    At the store's size; of an evaluation against the original masks at theirs.
    """
    contents = evaluation.native or [file_of(mask) for mask in evaluation.masks]
    for name, content in zip(evaluation.per_image["sample_id"], contents, strict=True):
        # A sample id comes from a file stem and holds no separator.
        replace_file(folder / f"{name}.png", content)
