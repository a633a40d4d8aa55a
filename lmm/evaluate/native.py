"""Predictions at the original images' own size: grey maps carried to it, and scored there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lmm.decoder import THRESHOLD, at_size
from lmm.metrics import HD95, score
from pipeline.errors import ArtefactError
from pipeline.samples import read_truth, require_same_bytes
from pipeline.store import LatentStore


class Originals:
    """The mask files that a store was made from, each at its own size.

    raises  ArtefactError when their folder is gone; InputError when a mask is not the bytes that
            were ingested
    """

    def __init__(self, store: LatentStore, sample_ids: Sequence[str]) -> None:
        self._source = store.source()
        if not self._source.root.is_dir():
            raise ArtefactError(
                f"{store.url}: its images were in {self._source.root}, which has gone",
                "bring the archive back; or ingest it where it is now and encode into the same "
                "store, which encodes nothing again",
            )
        rows = {row["sample_id"]: row for row in self._source.frame.iter_rows(named=True)}
        self._rows: list[Mapping[str, Any]] = [rows[name] for name in sample_ids]
        for row in self._rows:
            require_same_bytes(self._source.mask_paths(row), row["mask_sha256"])

    def score(self, greys: torch.Tensor, first: int, hd95: HD95) -> list[dict[str, Any]]:
        """Scores of grey maps (B, S, S) in [0, 1], the first of them of sample number `first`."""
        rows = self._rows[first : first + len(greys)]
        scored = []
        for grey, row in zip(greys.cpu().numpy(), rows, strict=True):
            truth = read_truth(self._source, row)
            prediction = at_size(grey, *truth.shape) > THRESHOLD
            scores = score(prediction[None], truth[None], hd95=hd95)
            scored.append({name: values[0] for name, values in scores.items()})
        return scored


def as_columns(scored: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Scores image by image as one array a metric."""
    return {name: np.array([one[name] for one in scored]) for name in scored[0]}
