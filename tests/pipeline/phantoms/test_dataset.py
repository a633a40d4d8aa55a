"""Phantoms: the statistics of their speckle, their masks, and how a set on disk may grow."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.errors import UsageError
from pipeline.phantoms import draw_phantom, plan_images, write_phantoms
from pipeline.phantoms.speckle import speckle_envelope


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*.png"))
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def otsu_threshold(image_u8: npt.NDArray[np.uint8]) -> int:
    """The threshold with the largest variance between the classes (Otsu 1979), by trying each."""
    pixels = image_u8.ravel().astype(float)
    spreads = []
    for threshold in range(1, 255):
        dark = pixels <= threshold
        share = dark.mean()
        if not 0 < share < 1:
            spreads.append(0.0)
            continue
        gap = pixels[dark].mean() - pixels[~dark].mean()
        spreads.append(share * (1 - share) * gap**2)
    return 1 + int(np.argmax(spreads))


def test_speckle_of_homogeneous_tissue_is_rayleigh() -> None:
    """Mean over standard deviation is √(π / (4 − π)) = 1.913 (Burckhardt 1978), at any depth."""
    rng = np.random.default_rng(1)
    envelope = speckle_envelope(np.full((512, 1024), 2.0, np.float32), rng)
    for rows in np.split(envelope, 4):
        assert rows.mean() / rows.std() == pytest.approx(1.913, rel=0.02)
        assert np.mean(rows**2) == pytest.approx(4.0, rel=0.03)
    # A Rayleigh variable's median is √(ln 2) of its root mean square.
    assert np.median(envelope) == pytest.approx(2 * np.sqrt(np.log(2)), rel=0.02)


def test_speckle_grain_is_wider_across_the_beam_and_away_from_the_focus() -> None:
    envelope = speckle_envelope(np.ones((400, 1024), np.float32), np.random.default_rng(2))

    def correlation(rows: slice, axis: int) -> float:
        part = envelope[rows] - envelope[rows].mean()
        return float(np.mean(part * np.roll(part, 2, axis)) / part.var())

    focus, deep = slice(150, 210), slice(340, 400)
    assert correlation(deep, axis=1) > correlation(focus, axis=1) + 0.2
    assert correlation(deep, axis=1) > correlation(deep, axis=0) + 0.2


@pytest.mark.parametrize("kind", ["benign", "malignant", "normal"])
def test_a_phantom_is_a_pure_function_of_seed_class_and_index(kind: str) -> None:
    first, again = draw_phantom(3, kind, 7), draw_phantom(3, kind, 7)
    assert np.array_equal(first.image_u8, again.image_u8)
    assert all(np.array_equal(a, b) for a, b in zip(first.masks, again.masks, strict=True))
    for other in (draw_phantom(4, kind, 7), draw_phantom(3, kind, 8)):
        assert not np.array_equal(first.image_u8[:200, :200], other.image_u8[:200, :200])


@pytest.mark.parametrize(("kind", "index", "lesions"), [("benign", 3, 1), ("benign", 4, 2)])
def test_lesions_are_dark_inside_the_image_and_disjoint(
    kind: str, index: int, lesions: int
) -> None:
    phantom = draw_phantom(0, kind, index)
    assert phantom.image_u8.dtype == np.uint8
    assert max(phantom.image_u8.shape) == 320
    assert len(phantom.masks) == lesions
    assert np.sum(phantom.masks, axis=0).max() == 1
    for mask in phantom.masks:
        assert mask.shape == phantom.image_u8.shape
        assert mask.sum() > 100
        assert phantom.image_u8[mask].mean() < phantom.image_u8[~mask].mean()


def test_a_global_threshold_fails() -> None:
    """Otsu's threshold finds dark fat, shadows and depth, not lesions: DSC far below 0.5."""
    scores = []
    for kind in ("benign", "malignant"):
        for index in range(1, 13):
            phantom = draw_phantom(0, kind, index)
            truth = np.any(phantom.masks, axis=0)
            found = phantom.image_u8 <= otsu_threshold(phantom.image_u8)
            scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    assert np.mean(scores) < 0.4


def test_classes_are_shared_out_as_in_busi() -> None:
    kinds = [kind for kind, _ in plan_images(780)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "benign": 437,
        "malignant": 210,
        "normal": 133,
    }
    assert set(kinds[:6]) == set(kinds)


def test_files_are_grey_images_and_two_valued_masks_in_busis_layout(tmp_path: Path) -> None:
    made = write_phantoms(tmp_path, 10, seed=5)
    archive = tmp_path / "Dataset_BUSI_with_GT"
    assert made.written == made.count == sum(made.by_class.values()) == 10
    assert (archive / "benign" / "benign (4)_mask_1.png").is_file()
    images = [path for path in archive.glob("*/*.png") if "_mask" not in path.name]
    assert len(images) == 10
    for path in images:
        with Image.open(path) as image:
            assert image.mode == "L"
        for mask_path in path.parent.glob(f"{path.stem}_mask*.png"):
            with Image.open(mask_path) as mask:
                assert mask.mode == "1"
                assert mask.size == image.size
                assert np.array(mask).any() == (path.parent.name != "normal")


def test_a_set_grows_and_keeps_its_bytes(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "grown", 5)
    before = digests(tmp_path / "grown")
    grown = write_phantoms(tmp_path / "grown", 9)
    assert grown.written == 4
    after = digests(tmp_path / "grown")
    assert before.items() <= after.items()
    write_phantoms(tmp_path / "whole", 9)
    assert after == digests(tmp_path / "whole")


def test_twice_is_safe_and_a_lost_file_is_drawn_again(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 4)
    before = digests(tmp_path)
    assert write_phantoms(tmp_path, 4).written == 0
    (tmp_path / "Dataset_BUSI_with_GT" / "benign" / "benign (1)_mask.png").unlink()
    assert write_phantoms(tmp_path, 4).written == 1
    assert digests(tmp_path) == before
    facts = json.loads((tmp_path / "PHANTOMS.json").read_text())
    assert facts == {"format_version": 1, "seed": 0, "count": 4}


def test_what_a_killed_process_left_of_a_file_is_not_foreign(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 4)
    image = tmp_path / "Dataset_BUSI_with_GT" / "benign" / "benign (1).png"
    image.rename(image.with_name(f"{image.name}.4711.partial"))
    assert write_phantoms(tmp_path, 4).written == 1
    (tmp_path / "notes.4711.partial").write_text("mine")
    with pytest.raises(UsageError, match=r"1 file of another origin; first: notes\.4711"):
        write_phantoms(tmp_path, 4)


def test_another_seed_a_smaller_count_and_foreign_files_are_refused(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_phantoms(ours, 4)
    with pytest.raises(UsageError, match="seed 0, not of seed 1"):
        write_phantoms(ours, 4, seed=1)
    with pytest.raises(UsageError, match="holds 4 phantoms, more than the 3"):
        write_phantoms(ours, 3)
    (ours / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"note\.txt"):
        write_phantoms(ours, 4)
    theirs.mkdir()
    (theirs / "scan.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"scan\.png"):
        write_phantoms(theirs, 4)
    (theirs / "scan.png").unlink()
    (theirs / "PHANTOMS.json").write_text('{"format_version": 99, "seed": 0, "count": 1}')
    with pytest.raises(UsageError, match="format_version 99"):
        write_phantoms(theirs, 4)
    (theirs / "PHANTOMS.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        write_phantoms(theirs, 4)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-3, 0), (1, -1)])
def test_no_set_is_drawn_from_numbers_out_of_range(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(UsageError):
        write_phantoms(tmp_path / "out", count, seed)
    assert not (tmp_path / "out").exists()
