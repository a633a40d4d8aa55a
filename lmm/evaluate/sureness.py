"""How sure the grey maps of an evaluation are, and how right: confidence of each, calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmm.confidence import (
    SUREST,
    Calibration,
    expected_dsc,
    mean_error,
    mean_of_surest,
    rank_correlation,
)


class Sureness:
    """Confidence and calibration of grey maps that are added some at a time.

    truths  (n, S, S) bool, in the order in which maps are added
    """

    def __init__(self, truths: torch.Tensor) -> None:
        self._truths = truths
        self._confidence: list[NDArray[np.float64]] = []
        self._averaged = Calibration()
        self._alone: dict[int, Calibration] = {}
        self._done = 0

    def add(self, greys: torch.Tensor, alone: Sequence[torch.Tensor] = ()) -> None:
        """Add the next grey maps (B, S, S), and each run's alone where they are averages."""
        truths = self._truths[self._done : self._done + len(greys)].cpu().numpy()
        self._done += len(greys)
        maps = greys.cpu().numpy()
        self._confidence.append(expected_dsc(maps))
        self._averaged.add(maps, truths)
        for place, own in enumerate(alone):
            self._alone.setdefault(place, Calibration()).add(own.cpu().numpy(), truths)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Of each image, (n,) in [0, 1]; see `lmm.confidence.expected_dsc`."""
        return np.concatenate(self._confidence)

    def summary(self, dsc: NDArray[np.float64]) -> dict[str, Any]:
        """What the summary says of it, beside the DSC of each image.

        mean, and rank_correlation with DSC (Spearman's ρ); surest_share of the images with the
        highest confidence, and dsc_of_surest; ece of the grey maps; ece_alone, the mean over runs
        of that of their maps of the clean view; curve, the bins of the grey maps' ECE
        """
        confidence = self.confidence
        return {
            "mean": float(confidence.mean()),
            "rank_correlation": rank_correlation(confidence, dsc),
            "surest_share": SUREST,
            "dsc_of_surest": mean_of_surest(dsc, confidence),
            "ece": self._averaged.error,
            **({"ece_alone": mean_error([*self._alone.values()])} if self._alone else {}),
            "curve": self._averaged.curve(),
        }
