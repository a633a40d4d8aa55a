"""Which images belong together, and which have a twin among those that a run was trained on."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

TIES = ("group_id", "twin_group")  # columns in which images of one group or twins are alike


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
