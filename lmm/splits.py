"""Which samples of a store a run is trained, selected and scored on: splits, and folds of train."""

import hashlib

import numpy as np
import polars as pl

from pipeline.errors import UsageError

CONTENT = ("image_sha256", "mask_sha256")  # what makes two samples one, whatever their names
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
        _require_fold(samples, fold)
        left_out = pl.col("fold").eq_missing(fold)
        inside &= left_out if split == FOLD else ~left_out
    return samples.select(inside.fill_null(False).arg_true()).to_series().to_numpy().astype(int)


def _require_fold(samples: pl.DataFrame, fold: int) -> None:
    """Raise UsageError unless some training samples are in that fold."""
    known = _in_folds(samples)["fold"].unique().sort().to_list()
    if fold not in known:
        there = f"only {', '.join(map(str, known))}" if known else "and no other"
        raise UsageError(
            f"there is no fold {fold} in the store, {there}",
            "choose another fold, or ingest with folds and encode again: "
            "changing folds encodes nothing",
        )


def images_digest(samples: pl.DataFrame) -> str:
    """Digest of a set of samples, whatever their names, order and store.

    returns  sha256, hex, of the sorted lines image_sha256 mask_sha256
    """
    lines = sorted(f"{image} {mask}\n" for image, mask in samples.select(CONTENT).rows())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def images_by_split(samples: pl.DataFrame, fold: int | None = None) -> dict[str, str]:
    """The digest of the images of each split, as a run of that fold, or of none, has them."""
    splits = [*samples["split"].drop_nulls().unique().sort()]
    splits += [FOLD] if fold is not None else []
    return {split: images_digest(samples[rows_of_split(samples, split, fold)]) for split in splits}


def digests_of_folds(samples: pl.DataFrame) -> dict[str, str]:
    """By number as text, the digest of the images of each fold; empty without folds."""
    parts = _in_folds(samples).partition_by("fold", as_dict=True)
    return {str(fold): images_digest(part) for (fold,), part in sorted(parts.items())}


def _in_folds(samples: pl.DataFrame) -> pl.DataFrame:
    """The training samples that are in a fold; a store of before folds has none."""
    if "fold" not in samples.columns:
        return samples.clear().with_columns(fold=pl.lit(None, pl.Int32))
    return samples.filter(split="train").drop_nulls("fold")
