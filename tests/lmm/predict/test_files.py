"""Mask files: one for every image that can be read, and nothing overwritten by mistake."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmm.predict import Predictor, load
from lmm.predict.files import predict_files
from lmm.run import Run
from pipeline.errors import InputError, UsageError

COLOURS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
NEAR = 1e-3  # sums in the order of another batch size may tip what lies nearer to the threshold


@pytest.fixture(scope="module")
def model(small_run: Run) -> Predictor:
    return load(small_run, device="cpu", precision="fp32")


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_files_that_cannot_be_read_are_named_and_the_others_predicted(
    model: Predictor, tmp_path: Path
) -> None:
    good = [save(tmp_path / f"{name}.png", COLOURS) for name in "ace"]
    whole = good[0].read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d.png").write_text("no image")
    calls: list[tuple[int, int]] = []
    done = predict_files(
        model,
        [tmp_path / f"{name}.png" for name in "abcde"],
        tmp_path / "masks",
        progress=lambda *call: calls.append(call),
    )
    assert done.n == 3
    assert [fault.path.name for fault in done.skipped] == ["b.png", "d.png"]
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["a.png", "c.png", "e.png"]
    assert calls[-1] == (5, 5)


def test_batches_of_any_size_give_the_masks_of_single_images(
    model: Predictor, tmp_path: Path
) -> None:
    images = [save(tmp_path / f"{i}.png", np.roll(COLOURS, 9 * i, axis=0)[:80]) for i in range(5)]
    for batch_size in (1, 2, 5):
        predict_files(model, images, tmp_path / "masks", grey=True, batch_size=batch_size)
        for path in images:
            grey = model.grey(path)
            written = np.array(Image.open(tmp_path / "masks" / "grey" / path.name))
            assert written.dtype == np.uint8
            assert np.abs(written - 255 * grey).max() < 0.5 + 255 * NEAR
            certain = np.abs(grey - 0.5) > NEAR
            mask = np.array(Image.open(tmp_path / "masks" / path.name))
            assert set(np.unique(mask)) <= {0, 255}
            np.testing.assert_array_equal(mask[certain] > 0, grey[certain] > 0.5)


def test_twice_gives_the_same_bytes(model: Predictor, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS)
    predict_files(model, [path], tmp_path / "masks")
    first = (tmp_path / "masks" / "a.png").read_bytes()
    predict_files(model, [path], tmp_path / "masks")
    assert [p.name for p in (tmp_path / "masks").iterdir()] == ["a.png"]
    assert (tmp_path / "masks" / "a.png").read_bytes() == first


def test_one_stem_twice_is_refused_before_anything_is_written(
    model: Predictor, tmp_path: Path
) -> None:
    images = [save(tmp_path / "a.png", COLOURS), save(tmp_path / "a.jpg", COLOURS)]
    with pytest.raises(InputError, match=r"a\.png and .*a\.jpg"):
        predict_files(model, images, tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_a_mask_never_replaces_an_image(model: Predictor, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"the mask of .*a\.png would replace it"):
        predict_files(model, [path], tmp_path)
    assert path.read_bytes() == before
    (tmp_path / "grey").mkdir()
    inner = save(tmp_path / "grey" / "a.png", COLOURS)
    with pytest.raises(UsageError, match="would replace it"):
        predict_files(model, [inner], tmp_path, grey=True)


def test_a_folder_that_cannot_be_written_is_a_usage_error(model: Predictor, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", COLOURS)
    with pytest.raises(UsageError, match="cannot be made: File exists"):
        predict_files(model, [path], path)
