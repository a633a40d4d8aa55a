"""A run and a store in, scores of every image out."""

from lmm.evaluate.cells import read_cells
from lmm.evaluate.evaluation import Evaluation, Wanted, write_evaluation, write_masks
from lmm.evaluate.files import (
    find_scored,
    open_images,
    open_scored,
    read_averages,
    read_evaluations,
    read_per_image,
    read_table,
    where_scored,
)
from lmm.evaluate.members import average_in_words
from lmm.evaluate.scoring import evaluate, predict

__all__ = [
    "Evaluation",
    "Wanted",
    "average_in_words",
    "evaluate",
    "find_scored",
    "open_images",
    "open_scored",
    "predict",
    "read_averages",
    "read_cells",
    "read_evaluations",
    "read_per_image",
    "read_table",
    "where_scored",
    "write_evaluation",
    "write_masks",
]
