"""The metrics, against hand-worked cases, MONAI, and medpy's definition written out with scipy."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from lmm.metrics import METRICS, Masks, score, summarise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MONAI's import warns of its own optional dependencies
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou

H, W = 40, 48
DIAGONAL = math.hypot(H, W)

small_masks = arrays.arrays(np.bool_, (1, 7, 9), elements=st.booleans(), fill=st.just(False))


def empty(n: int = 1) -> Masks:
    return np.zeros((n, H, W), dtype=np.bool_)


def with_pixels(*pixels: tuple[int, int]) -> Masks:
    masks = empty()
    for row, column in pixels:
        masks[0, row, column] = True
    return masks


def draw_blob(generator: np.random.Generator) -> Masks:
    return gaussian_filter(generator.standard_normal((H, W)), 5) > generator.uniform(0.01, 0.08)


def draw_line(generator: np.random.Generator) -> Masks:
    mask = np.zeros((H, W), dtype=np.bool_)
    rows = np.linspace(*generator.uniform(0, H - 1, 2), 60).round().astype(int)
    columns = np.linspace(*generator.uniform(0, W - 1, 2), 60).round().astype(int)
    mask[rows, columns] = True
    return mask


def draw_at_border(generator: np.random.Generator) -> Masks:
    mask = np.zeros((H, W), dtype=np.bool_)
    height, width = generator.integers(2, 20, 2)
    mask[:height, -width:] = True
    return mask if generator.random() < 0.5 else mask[::-1, ::-1]


def draw_pixel(generator: np.random.Generator) -> Masks:
    mask = np.zeros((H, W), dtype=np.bool_)
    mask[generator.integers(H), generator.integers(W)] = True
    return mask


def draw_noise(generator: np.random.Generator) -> Masks:
    return generator.random((H, W)) < 0.5


KINDS = (draw_blob, draw_line, draw_at_border, draw_pixel, draw_noise)


@pytest.fixture(scope="module")
def pairs() -> tuple[Masks, Masks]:
    """200 pairs, every kind against every kind eight times, none of them empty."""
    generator = np.random.default_rng(0)
    drawn = [(a(generator), b(generator)) for a in KINDS for b in KINDS for _ in range(8)]
    predictions, truths = (np.stack(side) for side in zip(*drawn, strict=True))
    assert len(predictions) == 200
    assert predictions.any(axis=(1, 2)).all()
    assert truths.any(axis=(1, 2)).all()
    return predictions, truths


def medpy_hd95(prediction: Masks, truth: Masks) -> float:
    """medpy.metric.binary.hd95 by its definition: connectivity 1, both directions in one pool."""

    def surface(mask: Masks) -> Masks:
        cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.bool_)
        return mask ^ binary_erosion(mask, structure=cross, iterations=1)

    a, b = surface(prediction), surface(truth)
    pool = [distance_transform_edt(~b)[a], distance_transform_edt(~a)[b]]
    return float(np.percentile(np.hstack(pool), 95))


def test_both_empty_is_perfect() -> None:
    scores = score(empty(), empty())
    assert [scores[m][0] for m in ("dsc", "iou", "hd95")] == [1, 1, 0]
    assert not scores["missed"][0]
    assert not scores["false_alarm"][0]


@pytest.mark.parametrize("hd95", ["monai", "pooled"])
def test_truth_alone_is_missed_and_costs_the_diagonal(hd95: str) -> None:
    scores = score(empty(), with_pixels((3, 4)), hd95=hd95)
    assert [scores[m][0] for m in ("dsc", "iou", "hd95")] == [0, 0, DIAGONAL]
    assert scores["missed"][0]
    assert not scores["false_alarm"][0]


@pytest.mark.parametrize("hd95", ["monai", "pooled"])
def test_prediction_alone_is_a_false_alarm_and_costs_the_diagonal(hd95: str) -> None:
    scores = score(with_pixels((3, 4)), empty(), hd95=hd95)
    assert [scores[m][0] for m in ("dsc", "iou", "hd95")] == [0, 0, DIAGONAL]
    assert scores["false_alarm"][0]
    assert not scores["missed"][0]


@pytest.mark.parametrize("hd95", ["monai", "pooled"])
def test_two_single_pixels_are_apart_by_pythagoras(hd95: str) -> None:
    scores = score(with_pixels((10, 10)), with_pixels((13, 14)), hd95=hd95)
    assert [scores[m][0] for m in ("dsc", "iou", "hd95")] == [0, 0, 5]


def test_full_masks_agree() -> None:
    scores = score(~empty(), ~empty())
    assert [scores[m][0] for m in ("dsc", "iou", "hd95")] == [1, 1, 0]


def test_overlap_of_two_rectangles_by_hand() -> None:
    prediction, truth = empty(), empty()
    prediction[0, 5:15, 5:15] = True  # 100 pixels
    truth[0, 5:15, 10:20] = True  # 100 pixels, 50 of them shared, shifted by 5
    scores = score(prediction, truth)
    assert scores["dsc"][0] == 100 / 200
    assert scores["iou"][0] == 50 / 150
    assert scores["hd95"][0] == 5


def test_percentile_interpolates_between_two_distances() -> None:
    # Distances of the two predicted pixels: 0 and 10; 95 % of the way is 9.5. Truth: 0.
    prediction, truth = with_pixels((5, 5), (5, 15)), with_pixels((5, 5))
    assert score(prediction, truth)["hd95"][0] == pytest.approx(9.5, abs=1e-6)
    # Pooled: 0, 0, 10; 95 % of the way is at 1.9 steps, 9 pixels.
    assert score(prediction, truth, hd95="pooled")["hd95"][0] == pytest.approx(9, abs=1e-12)


def test_pixels_at_the_image_border_are_edge_pixels() -> None:
    prediction, truth = ~empty(), with_pixels((0, 0))
    rim = [(r, c) for r in range(H) for c in range(W) if r in (0, H - 1) or c in (0, W - 1)]
    expected = np.percentile([math.hypot(r, c) for r, c in rim], 95)
    assert score(prediction, truth)["hd95"][0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI, of itself
def test_hd95_equals_monai_on_200_pairs(pairs: tuple[Masks, Masks]) -> None:
    p, t = (torch.from_numpy(masks[:, None]) for masks in pairs)
    expected = compute_hausdorff_distance(
        p.float(), t.float(), include_background=True, percentile=95, directed=False
    )
    got = score(*pairs)["hd95"]
    np.testing.assert_allclose(got, expected[:, 0].double().numpy(), rtol=0, atol=1e-6)


def test_dsc_and_iou_equal_monai_on_200_pairs(pairs: tuple[Masks, Masks]) -> None:
    p, t = (torch.from_numpy(masks[:, None]).float() for masks in pairs)
    scores = score(*pairs)
    np.testing.assert_allclose(scores["dsc"], compute_dice(p, t)[:, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(scores["iou"], compute_iou(p, t)[:, 0].numpy(), atol=1e-6)


def test_pooled_hd95_equals_medpy_on_200_pairs(pairs: tuple[Masks, Masks]) -> None:
    expected = [medpy_hd95(p, t) for p, t in zip(*pairs, strict=True)]
    np.testing.assert_allclose(score(*pairs, hd95="pooled")["hd95"], expected, rtol=0, atol=1e-9)


def test_order_of_images_is_kept(pairs: tuple[Masks, Masks]) -> None:
    forward = score(*pairs)
    backward = score(*(masks[::-1] for masks in pairs))
    for name, values in forward.items():
        assert np.array_equal(values[::-1], backward[name])


def test_tensors_and_arrays_score_alike(pairs: tuple[Masks, Masks]) -> None:
    p, t = pairs[0][:20], pairs[1][:20]
    of_tensors = score(torch.from_numpy(p), torch.from_numpy(t))
    for name, values in score(p, t).items():
        assert np.array_equal(values, of_tensors[name])


def test_no_image_scores_nothing() -> None:
    scores = score(empty(0), empty(0))
    assert all(len(values) == 0 for values in scores.values())


@settings(max_examples=60, deadline=None)
@given(small_masks, small_masks)
def test_metrics_are_symmetric_bounded_and_ordered(a: Masks, b: Masks) -> None:
    forward, backward = score(a, b), score(b, a)
    for metric in ("dsc", "iou", "hd95"):
        assert forward[metric][0] == backward[metric][0]
    assert forward["empty"][0] == backward["false_alarm"][0]
    dsc, iou = forward["dsc"][0], forward["iou"][0]
    assert 0 <= iou <= dsc <= 1
    assert dsc == pytest.approx(2 * iou / (1 + iou))
    assert 0 <= forward["hd95"][0] <= math.hypot(7, 9)


@settings(max_examples=40, deadline=None)
@given(small_masks)
def test_a_mask_agrees_with_itself(mask: Masks) -> None:
    scores = score(mask, mask.copy())
    assert [scores[m][0] for m in ("dsc", "iou", "hd95")] == [1, 1, 0]


@settings(max_examples=40, deadline=None)
@given(small_masks.filter(np.any), small_masks.filter(np.any))
def test_predicting_nothing_is_never_better_than_a_wrong_guess(guess: Masks, truth: Masks) -> None:
    guessed, missed = score(guess, truth), score(np.zeros_like(truth), truth)
    assert missed["hd95"][0] > guessed["hd95"][0]
    assert missed["dsc"][0] <= guessed["dsc"][0]


def test_a_prediction_elsewhere_is_missed_and_none_at_all_is_empty_too() -> None:
    truths = np.zeros((4, 8, 8), bool)
    truths[:3, 1:3, 1:3] = True
    predictions = np.zeros_like(truths)
    predictions[0, 5:7, 5:7] = True  # elsewhere
    predictions[2, 2, 2:7] = True  # by one pixel upon it
    predictions[3, 0, 0] = True  # where nothing is
    scores = score(predictions, truths)
    assert scores["missed"].tolist() == [True, True, False, False]
    assert scores["empty"].tolist() == [False, True, False, False]
    assert scores["false_alarm"].tolist() == [False, False, False, True]
    summary = summarise(scores)
    assert [summary[name] for name in ("missed", "empty", "false_alarms")] == [2, 1, 1]


def test_a_missed_lesion_makes_every_mean_worse() -> None:
    truths = np.concatenate([with_pixels((5, 5), (5, 6)), with_pixels((20, 20))])
    predictions = np.concatenate([with_pixels((5, 6)), empty()])
    without = summarise(score(predictions[:1], truths[:1]))
    with_missed = summarise(score(predictions, truths))
    assert with_missed["dsc"] < without["dsc"]
    assert with_missed["iou"] < without["iou"]
    assert with_missed["hd95"] > without["hd95"]
    assert (without["missed"], with_missed["missed"]) == (0, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_masks_that_are_not_bool_are_refused_by_dtype(dtype: type) -> None:
    with pytest.raises(TypeError, match=rf"truths are {np.dtype(dtype)}, expected bool"):
        score(empty(), empty().astype(dtype))


def test_a_nan_never_reaches_a_score() -> None:
    with pytest.raises(TypeError, match="predictions are float32, expected bool"):
        score(torch.full((1, H, W), torch.nan), empty())


def test_shapes_that_differ_or_are_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 40, 48\) and truths \(2, 40, 48\) differ"):
        score(empty(1), empty(2))
    with pytest.raises(ValueError, match=r"predictions have shape \(40, 48\)"):
        score(empty()[0], empty()[0])
    with pytest.raises(ValueError, match=r"predictions have shape \(3, 0, 5\)"):
        score(np.zeros((3, 0, 5), dtype=bool), np.zeros((3, 0, 5), dtype=bool))


def test_unknown_hd95_is_refused() -> None:
    with pytest.raises(ValueError, match="hd95 is 'max'"):
        score(empty(), empty(), hd95="max")


def scores_of(dsc: list[float]) -> dict[str, np.ndarray]:
    values = np.array(dsc)
    flags = np.zeros(len(dsc), dtype=np.bool_)
    return {
        "dsc": values,
        "iou": values,
        "hd95": values,
        "missed": flags,
        "empty": flags,
        "false_alarm": flags,
    }


def test_summary_of_three_images_by_hand() -> None:
    scores = score(
        np.concatenate([with_pixels((1, 1)), empty(), with_pixels((2, 2))]),
        np.concatenate([with_pixels((1, 1)), with_pixels((9, 9)), empty()]),
    )
    summary = summarise(scores)
    assert summary["n"] == 3
    assert summary["dsc"] == pytest.approx(1 / 3)
    assert summary["dsc_sd"] == pytest.approx(math.sqrt(1 / 3))
    assert summary["hd95"] == pytest.approx(2 / 3 * DIAGONAL)
    assert summary["dsc_ci95"] == [0, 1]  # all three alike: (1/3)³ and (2/3)³, both above 2.5 %
    assert (summary["missed"], summary["false_alarms"]) == (1, 1)


def test_interval_is_that_of_the_normal_approximation_for_many_images() -> None:
    values = np.random.default_rng(3).normal(0.8, 0.1, 400)
    summary = summarise(scores_of(list(values)))
    half = 1.96 * values.std() / math.sqrt(400)
    low, high = summary["dsc_ci95"]
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_summary_is_the_same_for_the_same_seed_alone() -> None:
    scores = scores_of([0.1, 0.5, 0.6, 0.9, 0.95])
    assert summarise(scores, seed=1) == summarise(scores, seed=1)
    few = [summarise(scores, seed=seed, resamples=50)["dsc_ci95"] for seed in range(4)]
    assert any(interval != few[0] for interval in few)


def test_summary_of_one_image_has_no_spread() -> None:
    summary = summarise(scores_of([0.7]))
    assert summary["dsc_sd"] == 0
    assert summary["dsc_ci95"] == [0.7, 0.7]


def test_summary_is_plain_json() -> None:
    summary = summarise(scores_of([0.2, 0.4]), resamples=100)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_summary_refuses_no_images_and_values_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="0 images"):
        summarise(scores_of([]))
    with pytest.raises(ValueError, match="1 of 2 images have a score that is not a finite number"):
        summarise(scores_of([0.5, math.nan]))


def test_every_metric_is_scored_summarised_and_shown_in_its_unit() -> None:
    masks = np.zeros((2, 8, 8), dtype=bool)
    scores = score(masks, masks)
    summary = summarise(scores)
    for metric in METRICS:
        assert len(scores[metric.key]) == 2
        assert {metric.key, f"{metric.key}_sd", f"{metric.key}_ci95"} <= summary.keys()
    assert [metric.shown(0.123456) for metric in METRICS] == ["12.35", "12.35", "0.12"]
    assert [metric.label for metric in METRICS] == ["DSC %", "IoU %", "HD95 px"]
    assert [metric.heading for metric in METRICS] == ["DSC (%)", "IoU (%)", "HD95 (px)"]
    assert [metric.best([3, 1, 2]) for metric in METRICS] == [3, 3, 1]
    assert [metric.worst([3, 1, 2]) for metric in METRICS] == [1, 1, 3]


def test_groups_of_one_image_are_drawn_as_images_are() -> None:
    values = np.random.default_rng(1).uniform(size=37)
    drawn = np.random.default_rng(5).integers(37, size=(200, 37), dtype=np.int32)
    expected = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5]).tolist()
    single = np.random.default_rng(2).permutation(37)
    for groups in (None, single):
        summary = summarise(scores_of([*values]), groups=groups, seed=5, resamples=200)
        assert summary["dsc_ci95"] == expected
        assert summary["groups"] == 37


def test_images_of_a_group_are_drawn_together() -> None:
    values = np.random.default_rng(1).uniform(size=20)
    alone = summarise(scores_of([*values]))
    three_times = np.repeat(values, 3)
    together = summarise(scores_of([*three_times]), groups=np.repeat(np.arange(20), 3))
    # Copies tell nothing new: the interval stays, which without groups would shrink.
    assert together["dsc_ci95"] == pytest.approx(alone["dsc_ci95"])
    assert (together["n"], together["groups"]) == (60, 20)
    low, high = summarise(scores_of([*three_times]))["dsc_ci95"]
    assert high - low < 0.7 * (alone["dsc_ci95"][1] - alone["dsc_ci95"][0])


def test_the_mean_of_drawn_groups_is_over_their_images() -> None:
    # Three images of 1 in one group, one of 0 in the other: 1, 3/4, 3/4 or 0.
    groups = np.array([7, 7, 2, 7])
    summary = summarise(scores_of([1, 1, 0, 1]), groups=groups, seed=0, resamples=1)
    drawn = np.random.default_rng(0).integers(2, size=2, dtype=np.int32).tolist()
    expected = {(0, 0): 1.0, (1, 1): 0.0}.get(tuple(drawn), 0.75)
    assert summary["dsc_ci95"] == [expected, expected]
    assert summary["dsc"] == 0.75
