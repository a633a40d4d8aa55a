"""A run and a store in, scores of every image out."""

from lmm.evaluate.cells import read_cells
from lmm.evaluate.files import (
    find_scored,
    open_images,
    open_scored,
    read_evaluations,
    read_per_image,
    where_scored,
)
from lmm.evaluate.scoring import (
    Evaluation,
    Wanted,
    evaluate,
    predict,
    write_evaluation,
    write_masks,
)

__all__ = [
    "Evaluation",
    "Wanted",
    "evaluate",
    "find_scored",
    "open_images",
    "open_scored",
    "predict",
    "read_cells",
    "read_evaluations",
    "read_per_image",
    "where_scored",
    "write_evaluation",
    "write_masks",
]
