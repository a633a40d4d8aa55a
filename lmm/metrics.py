"""How good predicted masks are: DSC, IoU and HD95 per image, then means with intervals.

Conventions (p the prediction, t the truth):
    both empty          DSC = IoU = 1, HD95 = 0
    one of them empty   DSC = IoU = 0, HD95 = √(H² + W²), the image diagonal in pixels: longer than
                        any distance between two pixels, so a missed lesion never improves a mean
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

Masks: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = dict[str, NDArray[Any]]
HD95: TypeAlias = Literal["monai", "pooled"]

IMAGES_PER_TASK = 16  # a task's temporaries stay within a core's cache: 16 masks of 224² are 0.8 MB
DENSE_EDGES = 0.2  # edge pixels per pixel of their bounding box above which the EDT beats the tree
BOOTSTRAP_CHUNK = 1 << 21  # resampled indices held at once


@dataclass(frozen=True)
class Metric:
    """A score of an image, and how everything that shows it says it.

    key               what it is called in results, tables and JSON
    name              what it is called among people
    unit              in which people are shown it
    factor            from its value to that unit
    higher_is_better  else lower is
    native_column     whether the report's table of images, narrow as it is, has room for it
                      against the original masks too
    """

    key: str
    name: str
    unit: str
    factor: int
    higher_is_better: bool
    native_column: bool

    @property
    def label(self) -> str:
        """Name and unit, as over a column: `DSC %`."""
        return f"{self.name} {self.unit}"

    @property
    def heading(self) -> str:
        """Name and unit, as in a paper's table: `DSC (%)`."""
        return f"{self.name} ({self.unit})"

    def shown(self, value: float) -> str:
        """A value in its unit, two decimals."""
        return f"{self.factor * value:.2f}"

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return max(values) if self.higher_is_better else min(values)

    def worst(self, values: Iterable[float]) -> float:
        """The worst of some values."""
        return min(values) if self.higher_is_better else max(values)


# What `score` gives of every image, in the order in which it is shown.
METRICS = (
    Metric("dsc", "DSC", "%", 100, higher_is_better=True, native_column=True),
    Metric("iou", "IoU", "%", 100, higher_is_better=True, native_column=False),
    Metric("hd95", "HD95", "px", 1, higher_is_better=False, native_column=True),
)
KEYS = tuple(metric.key for metric in METRICS)

# What `score` tells of every image beside its metrics, and what `summarise` calls their number.
FLAGS = {"missed": "missed", "empty": "empty", "false_alarm": "false_alarms"}


def score(
    predictions: Masks | torch.Tensor, truths: Masks | torch.Tensor, *, hd95: HD95 = "monai"
) -> Scores:
    """DSC, IoU and HD95 of every image.

    DSC = 2|p∩t| / (|p|+|t|); IoU = |p∩t| / |p∪t|; HD95 from the distances of each edge pixel of one
    mask to the nearest edge pixel of the other, an edge pixel having a 4-neighbour outside the mask
    (outside the image counts as outside). Percentiles interpolate linearly.

    predictions, truths  (n, H, W) bool, arrays or tensors on any device
    hd95                 "monai": the larger of both directions' 95th percentiles; equals MONAI's
                         compute_hausdorff_distance(percentile=95), float32 rounding included
                         "pooled": 95th percentile of both directions together; equals medpy's hd95
    returns              n values each: "dsc" and "iou" float64 in [0, 1], "hd95" float64 in pixels,
                         "missed" (t, and p nowhere on it), "empty" (t, and p empty: missed, too)
                         and "false_alarm" (p, but t empty) bool
    raises               TypeError when masks are not bool; ValueError when shapes differ or are not
                         (n, H, W), or for another hd95
    """
    p, t = _as_masks("predictions", predictions), _as_masks("truths", truths)
    if p.shape != t.shape:
        raise ValueError(f"predictions {p.shape} and truths {t.shape} differ in shape")
    if hd95 not in ("monai", "pooled"):
        raise ValueError(f"hd95 is {hd95!r}, expected 'monai' or 'pooled'")
    p_area, t_area = _areas(p), _areas(t)
    intersection = _areas(p_i & t_i for p_i, t_i in zip(p, t, strict=True))
    union = p_area + t_area - intersection
    both_empty = union == 0
    return {
        "dsc": _ratio(2 * intersection, p_area + t_area),
        "iou": _ratio(intersection, union),
        "hd95": np.where(both_empty, 0.0, _hausdorff95(p, t, hd95)),
        "missed": (intersection == 0) & (t_area > 0),
        "empty": (p_area == 0) & (t_area > 0),
        "false_alarm": (p_area > 0) & (t_area == 0),
    }


def summarise(
    scores: Mapping[str, NDArray[Any]],
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Means over images, their spread and their bootstrap intervals, ready for JSON.

    scores   what score returns, n ≥ 1 images; several results may be concatenated
    groups   (n,) the number of each image's group: images of one group are drawn together, since
             they are no independent samples; None where each is its own
    seed     of the bootstrap: same scores, groups and seed, same interval
    returns  {"n", "groups", "missed", "empty", "false_alarms"} int;
             for each of dsc, iou (fractions) and hd95 (pixels)
             {"dsc"} mean, {"dsc_sd"} sample standard deviation (0 for one image) and
             {"dsc_ci95"} [low, high]: 2.5th and 97.5th percentile of the means of resampled groups
    raises   ValueError when there is no image, when resamples < 1, or when a score is not finite
    source   Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; whole groups
             resampled with replacement: the cluster bootstrap of Field and Welsh, Bootstrapping
             clustered data, J. R. Statist. Soc. B 69, 2007
    """
    values = np.stack([np.asarray(scores[key], dtype=np.float64) for key in KEYS], axis=1)
    n = len(values)
    if n == 0 or resamples < 1:
        raise ValueError(f"nothing to summarise: {n} images, {resamples} resamples")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(axis=1).sum())
        raise ValueError(f"{bad} of {n} images have a score that is not a finite number")
    means = values.mean(axis=0)
    sds = values.std(axis=0, ddof=1) if n > 1 else np.zeros(len(METRICS))
    low, high = intervals_of_means(values, groups=groups, seed=seed, resamples=resamples)
    summary: dict[str, Any] = {"n": n, "groups": n if groups is None else len({*groups.tolist()})}
    for i, key in enumerate(KEYS):
        summary[key] = float(means[i])
        summary[f"{key}_sd"] = float(sds[i])
        summary[f"{key}_ci95"] = [float(low[i]), float(high[i])]
    return summary | {name: int(np.sum(scores[flag])) for flag, name in FLAGS.items()}


def intervals_of_means(
    values: Floats,
    *,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> Floats:
    """Bootstrap 95 % intervals of means over images.

    values   (n, k) scores of n images, or differences of two settings' scores
    groups   as `summarise` has them
    returns  (2, k): 2.5th and 97.5th percentile of the means of resampled groups
    source   as `summarise`
    """
    drawn = _bootstrap_means(*_sums_by_group(values, groups), seed, resamples)
    bounds: Floats = np.percentile(drawn, [2.5, 97.5], axis=0)
    return bounds


def _as_masks(name: str, masks: Masks | torch.Tensor) -> Masks:
    array = masks.detach().cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)
    if array.dtype != np.bool_:
        raise TypeError(f"{name} are {array.dtype}, expected bool: threshold them first (> 0.5)")
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(f"{name} have shape {array.shape}, expected (n, H, W)")
    return array


def _areas(masks: Iterable[Masks]) -> NDArray[np.int64]:
    return np.array([np.count_nonzero(mask) for mask in masks], dtype=np.int64)


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> Floats:
    """numerator / denominator, and 1 where both are 0: two empty masks agree."""
    result = np.ones(len(numerator))
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _hausdorff95(p: Masks, t: Masks, kind: HD95) -> Floats:
    """HD95 per image, the diagonal where a mask is empty; in threads, as scipy releases the GIL."""

    def task(start: int) -> list[float]:
        chunk = slice(start, start + IMAGES_PER_TASK)
        p_edges, t_edges = _edges(p[chunk]), _edges(t[chunk])
        return [_hausdorff95_of(*pair, kind) for pair in zip(p_edges, t_edges, strict=True)]

    with ThreadPoolExecutor() as threads:
        results = threads.map(task, range(0, len(p), IMAGES_PER_TASK))
    return np.array([value for result in results for value in result], dtype=np.float64)


def _hausdorff95_of(p_edge: Masks, t_edge: Masks, kind: HD95) -> float:
    p_pixels, t_pixels = _pixels(p_edge), _pixels(t_edge)
    if not len(p_pixels) or not len(t_pixels):
        return float(np.hypot(*p_edge.shape))
    p_to_t, t_to_p = _surface_distances(p_pixels, t_pixels)
    if kind == "pooled":
        return float(np.percentile(np.concatenate([p_to_t, t_to_p]), 95))
    return max(_percentile95_float32(p_to_t), _percentile95_float32(t_to_p))


def _edges(masks: Masks) -> Masks:
    """(n, H, W): the pixels of a mask with a 4-neighbour outside the mask or outside the image."""
    inside = np.zeros_like(masks)
    inside[:, 1:-1, 1:-1] = (
        masks[:, :-2, 1:-1] & masks[:, 2:, 1:-1] & masks[:, 1:-1, :-2] & masks[:, 1:-1, 2:]
    )
    return masks & ~inside


def _pixels(edge: Masks) -> NDArray[np.int64]:
    """(k, 2) row and column of every set pixel."""
    # One flat search: numpy finds non-zeros of one dimension eight times as fast as of two.
    return np.stack(np.divmod(np.flatnonzero(edge), edge.shape[1]), axis=1)


def _surface_distances(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Distance of every pixel of a to the nearest of b, and the other way round.

    Contours are sparse and a k-d tree is 3 to 4 times as fast as the distance transform of their
    bounding box; the noise an untrained model predicts is dense and turns that round.
    """
    corner = np.minimum(a.min(axis=0), b.min(axis=0))
    height, width = np.maximum(a.max(axis=0), b.max(axis=0)) - corner + 1
    if len(a) + len(b) > DENSE_EDGES * height * width:
        a, b = a - corner, b - corner
        return _distances_by_edt(a, b, (height, width)), _distances_by_edt(b, a, (height, width))
    return _distances_by_tree(a, b), _distances_by_tree(b, a)


def _distances_by_tree(a: NDArray[np.int64], b: NDArray[np.int64]) -> Floats:
    # Built for a single query, so the cheapest tree to build is the fastest.
    tree = cKDTree(b, leafsize=32, compact_nodes=False, balanced_tree=False)
    distances: Floats = tree.query(a)[0]
    return distances


def _distances_by_edt(a: NDArray[np.int64], b: NDArray[np.int64], shape: tuple[int, int]) -> Floats:
    background = np.ones(shape, dtype=np.bool_)
    background[b[:, 0], b[:, 1]] = False
    distances: Floats = distance_transform_edt(background)[a[:, 0], a[:, 1]]
    return distances


def _percentile95_float32(distances: Floats) -> float:
    # MONAI takes this quantile of float32 distances in torch; the last digits follow from that.
    return float(torch.quantile(torch.from_numpy(distances.astype(np.float32)), 0.95))


def _sums_by_group(
    values: Floats, groups: NDArray[np.int64] | None
) -> tuple[Floats, NDArray[np.int64]]:
    """Sums (g, k) of the scores of each group and its count of images, groups as they appear."""
    n = len(values)
    _, first, members = np.unique(
        np.arange(n) if groups is None else groups, return_index=True, return_inverse=True
    )
    places = np.argsort(np.argsort(first))[members]
    sums: Floats = np.stack([np.bincount(places, weights=one) for one in values.T], axis=1)
    return sums, np.bincount(places)


def _bootstrap_means(sums: Floats, counts: NDArray[np.int64], seed: int, resamples: int) -> Floats:
    """(g, k) sums of groups → (resamples, k) means over the images of the groups drawn.

    A resampled group brings all of its images along, and an image all of its scores.
    """
    generator = np.random.default_rng(seed)
    g = len(counts)
    rows = max(1, BOOTSTRAP_CHUNK // g)
    columns = [np.ascontiguousarray(column) for column in sums.T]
    means = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(g, size=(min(rows, resamples - start), g), dtype=np.int32)
        n = counts[drawn].sum(axis=1)
        means.append(np.stack([column[drawn].sum(axis=1) / n for column in columns], axis=1))
    return np.concatenate(means)
