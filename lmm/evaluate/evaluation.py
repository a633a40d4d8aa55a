"""What an evaluation is asked for and what it holds, and its files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lmm.averaging import Average
from lmm.evaluate.files import write_scores
from lmm.evaluate.native import file_of
from lmm.metrics import HD95
from pipeline.files import replace_file


@dataclass(frozen=True)
class Wanted:
    """What an evaluation is to hold beside the scores of the run's masks at the store's size.

    hd95     definition of HD95; see `lmm.metrics.score`
    native   scores against the original masks at their own size
    ceiling  what the tokenizer alone scores; see `lmm.evaluate.ceiling.ceiling`
    student  what the masks of the run's student score
    average  over what of each image grey maps are averaged; see `lmm.evaluate.members.Members`
    sure     confidence of each mask, calibration of the grey maps; always where maps are averaged
    grey     the grey maps themselves
    """

    hd95: HD95 = "monai"
    native: bool = False
    ceiling: bool = False
    student: bool = False
    average: Average = "none"
    sure: bool = False
    grey: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What a run scores on a split.

    name       SAMPLES-SPLIT: what its files are called; see `lmm.evaluate.files.find_scored`
    per_image  sample_id, dataset, class, dsc and iou (fractions), hd95 (px), missed, empty,
               false_alarm; confidence, the DSC that the grey map expects, where it is wanted;
               with the original masks also native_dsc, native_iou, native_hd95 (px of the original)
               and so on; twin_in_train, whether the run was trained on a twin, where the store
               knows of twins and the run what it has seen; prediction_png, the predicted mask
               at the store's size as a 1-bit PNG; in
               order of sample_id
    summary    keys as `gms-lmm evaluate --json` prints them
    masks      (n, H, W) bool, the predictions, in the same order
    native     with the original masks, the predictions at their size as `predict` writes them: PNG
               files of 0 and 255; else None
    greys      the grey maps at the size at which masks are written: PNG files; None unless wanted
    seconds    that predicting took: reading, encoding, averaging
    """

    name: str
    per_image: pl.DataFrame
    summary: dict[str, Any]
    masks: np.ndarray
    native: list[bytes] | None = None
    greys: list[bytes] | None = None
    seconds: float = 0.0


def write_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write NAME.parquet and NAME.json into `folder`; returns the parquet's path."""
    return write_scores(folder, evaluation.name, evaluation.per_image, evaluation.summary)


def write_masks(evaluation: Evaluation, folder: Path) -> None:
    """Write each predicted mask as FOLDER/sample_id.png, 0 and 255.

    At the store's size; of an evaluation against the original masks at theirs. Grey maps, where
    they were wanted, go to FOLDER/grey/sample_id.png, [0, 1] as 0…255.
    """
    names = evaluation.per_image["sample_id"]
    files = {folder: evaluation.native or [file_of(mask) for mask in evaluation.masks]}
    if evaluation.greys is not None:
        files[folder / "grey"] = evaluation.greys
    for place, contents in files.items():
        for name, content in zip(names, contents, strict=True):
            # A sample id comes from a file stem and holds no separator.
            replace_file(place / f"{name}.png", content)
