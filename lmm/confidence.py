"""How sure grey maps are of their masks, and whether they are right to be: confidence, calibration.

Both take a grey value for the probability that its pixel is foreground. Whether it is, the
calibration error tells.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from lmm.decoder import THRESHOLD, Grey
from lmm.metrics import Floats, Masks

BINS = 15
MARGIN = 0.1  # of the side, around truth and mask: pixels within are those that calibration is of
SUREST = 0.8  # share of the images whose DSC is told apart


def expected_dsc(greys: Grey) -> Floats:
    """The DSC that each grey map p expects of its own mask m = p > 0.5: 2 Σ p·m / (Σ p + Σ m).

    What DSC is with the probability of foreground in the truth's place. An empty mask expects
    nothing, unless the map is 0 everywhere, which is sure of an image without foreground.

    greys    (n, H, W) in [0, 1]
    returns  (n,) float64 in [0, 1]
    """
    p = greys.reshape(len(greys), -1).astype(np.float64)
    m = p > THRESHOLD
    both = p.sum(axis=1) + m.sum(axis=1)
    overlap = 2 * (p * m).sum(axis=1)
    expected: Floats = np.divide(overlap, both, out=np.ones(len(p)), where=both > 0)
    return expected


def mean_of_surest(values: Floats, confidence: Floats) -> float:
    """The mean over the 80 % of the images of the highest confidence, rounded up.

    Images of equal confidence are taken in order.
    """
    count = int(np.ceil(SUREST * len(values)))
    surest = np.argsort(-confidence, kind="stable")[:count]
    return float(values[surest].mean())


def rank_correlation(a: Floats, b: Floats) -> float | None:
    """Spearman's ρ in [-1, 1]; None where one is the same for all images."""
    ranks = np.stack([rankdata(a), rankdata(b)])
    if not ranks.std(axis=1).all():
        return None
    return float(np.corrcoef(ranks)[0, 1])


class Calibration:
    """Counts of pixels by grey value, and how many of them are foreground: maps are added to it.

    ECE = Σ_b n_b/N · |mean grey of bin b − share of foreground in bin b|, 15 bins of equal width
    over [0, 1], the pixels of all images together. Of an image it takes those in the box around
    truth and mask, wider by a tenth of the side each way and cut at the border: the rest is
    background that any map knows, and would hide what happens at the lesion. An image without both
    has no box.

    source  Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2
    """

    def __init__(self) -> None:
        self._pixels = np.zeros(BINS, np.int64)
        self._grey = np.zeros(BINS)
        self._truth = np.zeros(BINS, np.int64)

    def add(self, greys: Grey, truths: Masks) -> None:
        """Add maps (n, H, W) in [0, 1] and the truths (n, H, W) of their images."""
        for grey, truth in zip(greys, truths, strict=True):
            box = _box(truth | (grey > THRESHOLD))
            p, t = grey[box].ravel().astype(np.float64), truth[box].ravel()
            bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
            self._pixels += np.bincount(bins, minlength=BINS)
            self._grey += np.bincount(bins, weights=p, minlength=BINS)
            self._truth += np.bincount(bins[t], minlength=BINS)

    @property
    def error(self) -> float | None:
        """ECE, a fraction; None without pixels."""
        pixels = self._pixels.sum()
        return float(np.abs(self._grey - self._truth).sum() / pixels) if pixels else None

    def curve(self) -> list[dict[str, Any]]:
        """Of each bin that has pixels: how many, their mean grey, their share of foreground."""
        return [
            {"pixels": int(n), "grey": float(grey / n), "truth": float(truth / n)}
            for n, grey, truth in zip(self._pixels, self._grey, self._truth, strict=True)
            if n
        ]


def _box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The box around a mask, wider by the margin; empty without one."""
    margin = round(MARGIN * max(mask.shape))
    rows, columns = (_reach(places, margin) for places in np.nonzero(mask))
    return rows, columns


def _reach(places: NDArray[np.int64], margin: int) -> slice:
    if not places.size:
        return slice(0, 0)
    return slice(max(0, int(places.min()) - margin), int(places.max()) + margin + 1)


def mean_error(calibrations: Sequence[Calibration]) -> float | None:
    """The mean of some ECE; None where there is none."""
    errors = [one.error for one in calibrations if one.error is not None]
    return float(np.mean(errors)) if errors else None
