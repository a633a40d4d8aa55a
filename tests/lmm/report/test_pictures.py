"""Pictures of the report: contours as paths, and how large images are kept."""

import re

import numpy as np

from lmm.report.pictures import FULL_PX, SMALLEST_PX, outline, side_px


def test_a_contour_runs_through_the_middles_of_the_mask_s_edge() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 2:5] = True
    # In half pixels: the box is from (4, 2) to (10, 6); its corners are cut from middle to middle.
    path = re.fullmatch(r"M(\d+) (\d+)l(.*)z", outline(mask))
    assert path
    start = [int(path.group(1)), int(path.group(2))]
    steps = np.array(re.findall(r"-?\d+", path.group(3)), dtype=int).reshape(-1, 2)
    points = np.cumsum([start, *steps.tolist()], axis=0)
    expected = {(5, 2), (9, 2), (10, 3), (10, 5), (9, 6), (5, 6), (4, 5), (4, 3)}
    assert {tuple(point) for point in points.tolist()} == expected
    assert len(points) == 8


def test_every_part_and_hole_of_a_mask_has_its_contour() -> None:
    mask = np.zeros((12, 12), dtype=bool)
    mask[1:8, 1:8] = True
    mask[3:5, 3:5] = False
    mask[10, 10] = True
    assert outline(mask).count("M") == outline(mask).count("z") == 3
    assert outline(np.zeros((5, 5), dtype=bool)) == ""
    touching = np.eye(2, dtype=bool)  # two pixels that share a corner
    assert outline(touching).count("M") in (1, 2)


def test_the_contour_of_noise_is_drawn_coarser_and_still_spans_the_image() -> None:
    noise = np.random.default_rng(0).random((224, 224)) < 0.5
    path = outline(noise)
    assert 1000 < len(path) <= 10_000
    starts = np.array(re.findall(r"M(\d+) (\d+)l", path), dtype=int)
    assert starts.max() <= 448
    assert (starts.max(axis=0) > 350).all()


def test_many_images_are_kept_smaller_than_few() -> None:
    assert side_px(130, 224) == FULL_PX
    assert side_px(130, 64) == 64
    assert 130 < side_px(400, 224) < FULL_PX
    assert side_px(100_000, 224) == SMALLEST_PX
