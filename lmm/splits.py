"""Which samples of a store a run is trained, selected and scored on: splits, and folds of train."""

import hashlib

import numpy as np
import polars as pl

from pipeline.errors import UsageError

FOLD = "fold"  # the split of what a run of one fold leaves out


def rows_of_split(samples: pl.DataFrame, split: str, fold: int | None = None) -> np.ndarray:
    """Rows of a split in a store's samples, in their order: int64 [n].

    A run of a fold trains on `train` without the samples of that fold, and may be scored on these
    as the split `fold`. Its other splits, and every split without folds, are those of the store.

    fold    of the run; None where it leaves none out
    raises  UsageError for a fold that is not there, or the split `fold` without one
    """
    if split == FOLD and fold is None:
        raise UsageError("the run left no fold out to be scored on", "train one with --fold")
    inside = pl.col("split") == ("train" if split == FOLD else split)
    if fold is not None and split in ("train", FOLD):
        require_fold(samples, fold)
        left_out = pl.col("fold").eq_missing(fold)
        inside &= left_out if split == FOLD else ~left_out
    return samples.select(inside.fill_null(False).arg_true()).to_series().to_numpy().astype(int)


def require_fold(samples: pl.DataFrame, fold: int) -> None:
    """Raise UsageError unless some training samples are in that fold."""
    known = list(digests_of_folds(samples))
    if str(fold) not in known:
        there = f"only {', '.join(known)}" if known else "and no other"
        raise UsageError(
            f"there is no fold {fold} in the store, {there}",
            "choose another fold, or ingest with folds and encode again: "
            "changing folds encodes nothing",
        )


def digests_of_folds(samples: pl.DataFrame) -> dict[str, str]:
    """By number as text, a sha256 over the images and masks of each fold; empty without folds."""
    if "fold" not in samples.columns:
        return {}
    in_folds = samples.filter(split="train").drop_nulls("fold").sort("fold", "image_sha256")
    parts = in_folds.select("fold", "image_sha256", "mask_sha256").group_by(
        "fold", maintain_order=True
    )
    return {
        str(fold): hashlib.sha256(
            "".join(map("".join, part.drop("fold").iter_rows())).encode()
        ).hexdigest()
        for (fold,), part in parts
    }
