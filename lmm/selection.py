"""Which epoch of a run is kept: the one at the top of the smoothed curve of its val scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmm.metrics import Floats
from lmm.settings import LoopSettings

WIDTH = 0.05  # of a run's epochs: standard deviation of the Gaussian that smooths val's curve
REACH = 3  # standard deviations from which on another validation has no weight


def choose(epochs: Sequence[int], dsc: Floats, settings: LoopSettings) -> int:
    """The epoch that is kept of those validated so far: the one with the highest smoothed mean.

    Val parts are small. From one validation to the next the mean of val rises and falls by what
    happens to a few images, and images of test do so by themselves: the highest of many such means
    is mostly luck. What lasts over some epochs is not, so each mean is averaged with those around
    it, weighted by a Gaussian of WIDTH of the run's epochs. A curve that rises to its end keeps its
    last epoch, one that falls again keeps the epoch at the top of its hill. With `select_on` test,
    the GMS authors' protocol, the highest mean itself is kept.

    A function of all validations and nothing else, so that a choice can be made again from a run's
    validations.parquet. Of equal means the later wins, with the lower learning rate behind it.

    epochs  k of them, in order
    dsc     (k, n) of each image, fractions
    """
    means = dsc.mean(axis=1)
    if settings.select_on == "test":
        return epochs[int(np.argmax(means))]
    curve = _smoothed(np.array(epochs), means, settings)
    return epochs[len(curve) - 1 - int(np.argmax(curve[::-1]))]


def contenders(epochs: Sequence[int], dsc: Floats, settings: LoopSettings) -> list[int]:
    """Epochs so far whose weights have to stay: `choose` may yet take them in place of its choice.

    The smoothed mean of an epoch is settled once those within REACH of it are validated. So these
    are the epochs near the end, within REACH · WIDTH of a run's, and the best of those settled.

    epochs, dsc  as in `choose`
    """
    if settings.select_on == "test":
        return []
    curve = _smoothed(np.array(epochs), dsc.mean(axis=1), settings)
    reach = REACH * WIDTH * settings.epochs
    settled = sum(epochs[-1] - epoch >= reach for epoch in epochs)
    best = [epochs[settled - 1 - int(np.argmax(curve[:settled][::-1]))]] if settled else []
    return [*best, *epochs[settled:]]


def _smoothed(epochs: NDArray[np.int64], means: Floats, settings: LoopSettings) -> Floats:
    """Each mean averaged with those around it; (k,) both."""
    away = (epochs[:, None] - epochs) / (WIDTH * settings.epochs)
    weights = np.exp(-0.5 * away**2) * (np.abs(away) < REACH)
    averaged: Floats = weights @ means / weights.sum(axis=1)
    return averaged
