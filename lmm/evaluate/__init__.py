"""A run and a store in, scores of every image out."""

from lmm.evaluate.scoring import (
    Evaluation,
    evaluate,
    evaluation_name,
    write_evaluation,
    write_masks,
)

__all__ = ["Evaluation", "evaluate", "evaluation_name", "write_evaluation", "write_masks"]
