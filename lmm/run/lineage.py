"""What a run has seen: the samples it was trained on and those that chose its epoch, by content."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from lmm.splits import CONTENT
from pipeline.errors import ArtefactError
from pipeline.files import replacing

LINEAGE_FILE = "lineage.parquet"
ROLES = {"train": "were trained on", "select": "chose the epoch"}


def lineage_of(train: pl.DataFrame, select: pl.DataFrame) -> pl.DataFrame:
    """What a run is going to see: image_sha256, mask_sha256, sample_id, role.

    train    samples that it is trained on, rows of a store or manifest
    select   those that choose its epoch
    returns  a row for each, its role `train` or `select`
    """
    parts = [select.with_columns(role=pl.lit("select")), train.with_columns(role=pl.lit("train"))]
    return pl.concat(parts).select(*CONTENT, "sample_id", "role").sort("role", "sample_id")


def write_lineage(folder: Path, lineage: pl.DataFrame) -> None:
    """Write what a run is going to see into its folder, as a whole."""
    with replacing(folder / LINEAGE_FILE) as partial:
        lineage.write_parquet(partial)


def read_lineage(folder: Path) -> pl.DataFrame:
    """What a run has seen; raises ArtefactError when the file is gone or damaged."""
    try:
        return pl.read_parquet(folder / LINEAGE_FILE)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtefactError(
            f"{folder} has no {LINEAGE_FILE} that can be read: what it was trained on is not known",
            "bring the file back, or train it again",
        ) from error


def seen_among(lineage: pl.DataFrame, samples: pl.DataFrame) -> dict[str, list[str]]:
    """Which of some samples have an image that a run has seen, under whatever name.

    returns  for `train` and for `select` their sample_ids, sorted
    """
    found = {}
    for role in ROLES:
        images = lineage.filter(role=role)["image_sha256"].implode()
        seen = samples.filter(pl.col("image_sha256").is_in(images))
        found[role] = sorted(seen["sample_id"])
    return found


def seen_in_words(seen: Mapping[str, int] | None, n: int) -> str:
    """How many of n scored images a run had seen, for tables and pages; nothing where none.

    seen  number by role; None where it is not known
    """
    if seen is None:
        return "seen: not known"
    return ", ".join(f"{seen[role]} of {n} {words}" for role, words in ROLES.items() if seen[role])
