"""Which images have a twin among those that a run was trained on."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray


def twins_in_train(
    lineage: pl.DataFrame | None, samples: pl.DataFrame, sample_ids: Sequence[str]
) -> NDArray[np.bool_] | None:
    """Which images share a twin_group with one that a run was trained on.

    lineage  of the run, None where it is not known
    samples  the store's, in which twins are found
    returns  (n,), in the order of `sample_ids`; None without a lineage or a column twin_group
    """
    if lineage is None or "twin_group" not in samples.columns:
        return None
    trained = lineage.filter(role="train")["image_sha256"].implode()
    groups = samples.filter(pl.col("image_sha256").is_in(trained))["twin_group"].drop_nulls()
    twins = samples.filter(pl.col("twin_group").is_in(groups.implode()))["sample_id"]
    return np.isin(sample_ids, twins.to_list())
