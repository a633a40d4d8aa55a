"""Which samples of a store a run is trained, selected and scored on: splits, folds, shares."""

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lmm.settings import TrainSettings
from pipeline.errors import UsageError

CONTENT = ("image_sha256", "mask_sha256")  # what makes two samples one, whatever their names
FOLD = "fold"  # the split of what a run of one fold leaves out
TIES = ("group_id", "twin_group")  # columns in which images of one group or twins are alike


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


def require_some(rows: np.ndarray, url: str, samples: pl.DataFrame, split: str) -> None:
    """Raise UsageError unless there are rows of a split in what lies at `url`."""
    if not rows.size:
        present = sorted(samples["split"].drop_nulls().unique())
        raise UsageError(
            f"{url} has no sample in split {split!r}, only in {', '.join(present)}",
            "choose another split, or ingest with --val-fraction; a store is then encoded again, "
            "which changes its splits and encodes nothing",
        )


def rows_to_train_on(samples: pl.DataFrame, settings: TrainSettings) -> np.ndarray:
    """Rows that a run is trained on, in their order: train without its fold, and its share of that.

    Where no split chooses the epoch, val's rows are among those of train.

    Groups, whose images `groups_of` ties, are taken whole, in the order of a hash of seed and
    content, until they hold the share: whatever the store's order, and 10 % are among the 20 %.

    returns  int64 [n]
    raises   UsageError for a fold that is not there
    """
    rows = rows_of_split(samples, "train", settings.fold)
    if settings.select_on == "none":
        rows = np.sort(np.concatenate([rows, rows_of_split(samples, "val")]))
    if settings.share is None:
        return rows
    train = samples[rows]
    groups = groups_of(train, train["sample_id"].to_list())
    hashes = [_hashed(settings.seed, image) for image in train["image_sha256"]]
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    wanted = settings.share * len(rows)
    taken: list[int] = []
    for together in sorted(members.values(), key=lambda of: min(hashes[row] for row in of)):
        if len(taken) >= wanted - 1e-6:  # a product of floats
            break
        taken += together
    return rows[sorted(taken)]


def _hashed(seed: int, image: str) -> bytes:
    return hashlib.sha256(f"share:{seed}:{image}".encode()).digest()


def groups_of(samples: pl.DataFrame, sample_ids: Sequence[str]) -> NDArray[np.int64]:
    """The number of the group of each image: what one group_id or twin_group ties, step by step.

    samples  a store's; one of before twins has no twin_group
    returns  (n,), in the order of `sample_ids`
    """
    chosen = pl.DataFrame({"sample_id": sample_ids}).join(
        samples, on="sample_id", maintain_order="left"
    )
    n = chosen.height
    edges: list[tuple[int, int]] = []
    nodes = n
    for column in (name for name in TIES if name in chosen.columns):
        codes = chosen[column].rank("dense")
        edges += [(row, nodes + code - 1) for row, code in enumerate(codes) if code is not None]
        nodes += n
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(nodes, nodes))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1][:n]
    return labels


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
