"""Masks of new images: at their own size, and those that evaluate would give."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import torch
from PIL import Image

import lmm.predict
from lmm.evaluate import Wanted, evaluate, write_masks
from lmm.model import LatentMappingModel
from lmm.predict import Predictor, load
from lmm.predict.files import predict_files
from lmm.run import Run, open_run
from lmm.run.authors import import_checkpoint
from lmm.settings import TrainSettings
from lmm.train import train
from pipeline.archive import build_manifest
from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
from pipeline.images import ImageError
from pipeline.store import open_store
from pipeline.tokenizer import load_tokenizer

CPU = torch.device("cpu")
NEAR = 1e-3  # sums in the order of another batch size may tip what lies nearer to the threshold
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(small_run: Run) -> Predictor:
    return load(small_run, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A checkpoint of the authors' form, of which no store and no tokenizer is known."""
    folder = tmp_path_factory.mktemp("imported")
    torch.manual_seed(0)
    torch.save({"model": LatentMappingModel(4, 16).state_dict()}, folder / "lmm.pth")
    return import_checkpoint(folder / "lmm.pth", folder / "run")


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def rotated(path: Path) -> Path:
    """A photo that lies on its side in the file, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter, clockwise
    return save(path, COLOURS, exif=exif)


def test_the_mask_is_that_of_evaluate_for_an_image_at_the_store_s_size(
    small_run: Run, model: Predictor, small_store: str, tmp_path: Path
) -> None:
    store = open_store(small_store)
    evaluation = evaluate(small_run, store, "test", CPU)
    assert evaluation.masks.any()
    assert not evaluation.masks.all()
    source = store.source()
    for name, expected in zip(evaluation.per_image["sample_id"], evaluation.masks, strict=True):
        row = source.frame.row(by_predicate=pl.col("sample_id") == name, named=True)
        side = (store.size, store.size)
        with Image.open(source.image_path(row)) as image:
            image.resize(side, Image.Resampling.BILINEAR).save(tmp_path / "image.png")
        grey = model.grey(tmp_path / "image.png")
        certain = np.abs(grey - 0.5) > NEAR
        assert certain.mean() > 0.98
        mask = model(tmp_path / "image.png")
        np.testing.assert_array_equal(mask[certain], expected[certain])
        # The original, of another size, is resized as at encoding before anything else.
        maps = model.grey_maps(np.array(Image.open(tmp_path / "image.png"))[None])
        height, width = row["height"], row["width"]
        own = Image.fromarray(maps[0]).resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(model.grey(source.image_path(row)), own, atol=1e-5)


def test_native_masks_of_evaluate_are_those_of_predict_to_the_pixel(
    small_run: Run, small_store: str, tmp_path: Path
) -> None:
    store = open_store(small_store)
    source = store.source()
    evaluation = evaluate(small_run, store, "test", CPU, Wanted(native=True))
    table = evaluation.per_image
    rows = {row["sample_id"]: row for row in source.frame.iter_rows(named=True)}
    paths = [source.image_path(rows[name]) for name in table["sample_id"]]
    predict_files(load(small_run, device="cpu"), paths, tmp_path / "predict")
    write_masks(evaluation, tmp_path / "evaluate")
    for path, scored in zip(paths, table.iter_rows(named=True), strict=True):
        masks = source.mask_paths(rows[scored["sample_id"]])
        truth = np.any([np.asarray(Image.open(mask)) > 0 for mask in masks], axis=0)
        mask = np.asarray(Image.open(tmp_path / "predict" / path.name))
        written = np.asarray(Image.open(tmp_path / "evaluate" / path.name))
        assert (written.dtype, written.shape) == (np.uint8, truth.shape)
        np.testing.assert_array_equal(written, mask)
        # The intersection over the sizes, by hand.
        dsc = 2 * ((mask > 0) & truth).sum() / ((mask > 0).sum() + truth.sum())
        assert scored["native_dsc"] == pytest.approx(dsc)


def test_masks_of_real_images_are_those_of_evaluate_to_the_pixel(
    assets: Path, tmp_path: Path
) -> None:
    published = assets / "splits" / "gms" / "busi_train_test_names.pkl"
    manifest = build_manifest(assets / "data" / "busi", "busi", split_file=published).manifest
    counts = {"train": 4, "val": 1, "test": 5}
    parts = [manifest.frame.filter(split=name).head(n) for name, n in counts.items()]
    few = dataclasses.replace(manifest, frame=pl.concat(parts))
    encode(few, str(tmp_path / "few.zarr"), load_tokenizer("tiny-vae"))
    store = open_store(str(tmp_path / "few.zarr"))
    train(store, tmp_path / "run", TrainSettings(loss="lm", epochs=4, width=16), device=CPU)
    run = open_run(tmp_path / "run")
    evaluation = evaluate(run, store, "test", CPU, Wanted(native=True))
    write_masks(evaluation, tmp_path / "evaluate")
    paths = [few.image_path(row) for row in parts[-1].iter_rows(named=True)]
    model = load(run, device="cpu")
    # Five, three, and one alone: what comes with an image is not to be seen in its mask.
    predict_files(model, paths, tmp_path / "predict")
    predict_files(model, paths[2:], tmp_path / "three")
    drawn = 0
    for path in paths:
        expected = np.asarray(Image.open(tmp_path / "evaluate" / path.name))
        drawn += np.count_nonzero(expected)
        np.testing.assert_array_equal(Image.open(tmp_path / "predict" / path.name), expected)
        np.testing.assert_array_equal(model(path), expected > 0)
        if path in paths[2:]:
            np.testing.assert_array_equal(Image.open(tmp_path / "three" / path.name), expected)
    assert drawn > 0


def test_auto_takes_the_store_s_arithmetic_for_e_and_float32_for_the_rest(small_run: Run) -> None:
    own = small_run.description["store"]
    half = {**own, "preprocessing": {**own["preprocessing"], "precision": "bf16"}}
    of_half = dataclasses.replace(small_run, description={**small_run.description, "store": half})
    for run, said, expected in (
        (small_run, "auto", ("fp32", "fp32")),
        (of_half, "auto", ("bf16", "fp32")),
        (of_half, "fp32", ("fp32", "fp32")),
        (small_run, "bf16", ("bf16", "bf16")),
    ):
        model = load(run, device="cpu", precision=said)
        assert (model.e_precision, model.precision) == expected


def test_half_precision_that_overflows_is_encoded_again_in_full_as_in_a_store(
    small_run: Run, model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = load(small_run, device="cpu")
    half.e_precision = "bf16"
    exact = half.tokenizer.encode

    def overflowing(pixels_pm1: torch.Tensor, precision: str) -> tuple[torch.Tensor, None]:
        mean = exact(pixels_pm1, "fp32")[0]
        return (mean / 0 if precision == "bf16" else mean), None

    monkeypatch.setattr(half.tokenizer, "encode", overflowing)
    np.testing.assert_array_equal(half.grey(COLOURS), model.grey(COLOURS))


def test_the_grey_map_is_interpolated_before_it_is_thresholded(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = np.zeros((1, small.SIZE_PX, small.SIZE_PX), np.float32)
    steps[:, :, small.SIZE_PX // 2 :] = 1
    steps[:, :, small.SIZE_PX // 2 - 1] = 0.4
    monkeypatch.setattr(Predictor, "grey_maps", lambda *_: steps)
    wide = np.zeros((small.SIZE_PX, 4 * small.SIZE_PX), np.uint8)
    # Pixel x of 4 lies at (x + ½)/4 − ½ of the map: 0.4 → 1 passes 0.5 a sixth of a pixel on.
    first = int(model(wide)[0].argmax())
    assert first == min(x for x in range(256) if (x + 0.5) / 4 - 0.5 - 31 > 1 / 6)
    grey = model.grey(wide)[0]
    assert grey[first - 1] == pytest.approx(0.4 + 0.6 * ((first - 0.5) / 4 - 0.5 - 31), abs=1e-5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (rotated, (120, 90)),
        (lambda path: save(path, COLOURS[..., 0].astype(np.uint16) * 257), (90, 120)),
        (lambda path: save(path, COLOURS[..., 0]), (90, 120)),
        (lambda path: save(path, COLOURS, "RGBA"), (90, 120)),
        (lambda path: save(path, COLOURS, "P"), (90, 120)),
        (lambda path: save(path, COLOURS[:30, :30]), (30, 30)),
        (lambda path: save(path, COLOURS[:1, :1]), (1, 1)),
        (lambda path: save(path, COLOURS, "1"), (90, 120)),
    ],
    ids=["exif-rotated", "16-bit", "grey", "rgba", "palette", "30-px", "1-px", "1-bit"],
)
def test_a_mask_has_the_size_of_the_image_as_displayed(
    make: object, shape: tuple[int, int], model: Predictor, tmp_path: Path
) -> None:
    path = make(tmp_path / "image.png")  # type: ignore[operator]
    mask = model(path)
    assert (mask.shape, mask.dtype) == (shape, np.bool_)
    predict_files(model, [path], tmp_path / "masks")
    with Image.open(tmp_path / "masks" / "image.png") as written:
        assert (written.mode, written.size) == ("L", shape[::-1])
        np.testing.assert_array_equal(np.array(written), mask * np.uint8(255))


def test_a_large_photo_gets_a_mask_of_its_own_size(model: Predictor, tmp_path: Path) -> None:
    Image.fromarray(COLOURS).resize((4000, 3000)).save(tmp_path / "photo.jpg")
    assert model(tmp_path / "photo.jpg").shape == (3000, 4000)


def test_path_pillow_image_and_array_give_one_mask(model: Predictor, tmp_path: Path) -> None:
    path = rotated(tmp_path / "image.png")
    expected = model(path)
    np.testing.assert_array_equal(model(str(path)), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(model(image), expected)
    upright = np.rot90(COLOURS, -1)
    np.testing.assert_array_equal(model(upright), expected)
    np.testing.assert_array_equal(model(Image.fromarray(np.ascontiguousarray(upright))), expected)
    grey = COLOURS[..., 0]
    np.testing.assert_array_equal(model(grey), model(np.stack([grey] * 3, axis=2)))


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (np.zeros((8, 8, 3), np.float32), TypeError, "float32, expected uint8"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"\(8, 8, 4\)"),
        (np.zeros((0, 8), np.uint8), ValueError, r"\(0, 8, 3\)"),
        (Image.new("F", (8, 8)), ImageError, "mode F beyond 16 bits"),
        (Path("gone.png"), ImageError, "gone.png: no such file"),
    ],
)
def test_an_image_that_cannot_serve_is_refused(
    image: object, error: type[Exception], says: str, model: Predictor
) -> None:
    with pytest.raises(error, match=says):
        model(image)  # type: ignore[arg-type]


def test_output_that_is_not_finite_is_no_empty_mask(
    model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [save(tmp_path / f"{name}.png", COLOURS) for name in "ab"]
    encode = model.tokenizer.encode

    def overflowing(pixels_pm1: torch.Tensor, precision: str) -> tuple[torch.Tensor, None]:
        mean = encode(pixels_pm1, precision)[0]
        mean[0, 0, 0, 0] = 1e6  # beyond float16
        return mean, None

    monkeypatch.setattr(model.tokenizer, "encode", overflowing)
    done = predict_files(model, images, tmp_path / "masks", batch_size=2)
    assert (done.n, [fault.path.name for fault in done.skipped]) == (1, ["a.png"])
    with pytest.raises(ImageError, match=r"a\.png: gives latents or a mask that are not finite"):
        model(images[0])


def test_an_imported_run_needs_tokenizer_and_size(imported: Run, kl_folder: Path) -> None:
    with pytest.raises(UsageError, match="does not say what --tokenizer and --size are"):
        load(imported)
    with pytest.raises(UsageError, match="does not say what --size are"):
        load(imported, tokenizer=str(kl_folder))
    model = load(imported, tokenizer=str(kl_folder), size=32, device="cpu")
    assert model(COLOURS).shape == (90, 120)
    with pytest.raises(UsageError, match="--size 30 is not a multiple of 8"):
        load(imported, tokenizer=str(kl_folder), size=30)


def test_an_imported_run_refuses_a_tokenizer_of_other_channels(
    imported: Run, tmp_path: Path
) -> None:
    small.small_vq().save_pretrained(tmp_path / "vq")
    with pytest.raises(ArtefactError, match=r"latents of 4 channels, .*vq' has 3"):
        load(imported, tokenizer=str(tmp_path / "vq"), size=64)


def test_another_tokenizer_than_the_run_s_is_refused_naming_both(
    small_run: Run, kl_folder: Path, tmp_path: Path
) -> None:
    small.small_kl(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ArtefactError, match=r"trained on latents of '.*/kl' .*'.*/other' is "):
        load(small_run, tokenizer=str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"trained at 64 px, asked for is 128 px"):
        load(small_run, size=128)


def test_weights_that_moved_are_named_by_their_new_place(
    small_run: Run, model: Predictor, kl_folder: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(kl_folder)
    gone = {
        **small_run.description,
        "tokenizer": {**(small_run.tokenizer or {}), "name": "/gone/kl"},
    }
    stale = dataclasses.replace(small_run, description=gone)
    with pytest.raises(ArtefactError, match="/gone/kl"):
        load(stale)
    again = lmm.predict.load(stale, tokenizer=str(moved), device="cpu", precision="fp32")
    np.testing.assert_array_equal(again(COLOURS), model(COLOURS))


def test_an_image_of_16_bits_is_read_in_the_window_of_the_runs_store(
    small_run: Run, tmp_path: Path
) -> None:
    store = small_run.description["store"]
    preprocessing = {**store["preprocessing"], "window": [0, 4095]}
    description = {**small_run.description, "store": {**store, "preprocessing": preprocessing}}
    windowed = load(dataclasses.replace(small_run, description=description), device="cpu")
    twelve_bits = RNG.integers(0, 4096, (90, 120), dtype=np.uint16)
    path = save(tmp_path / "deep.png", twelve_bits)
    as_bytes = np.round(twelve_bits / 4095 * 255).astype(np.uint8)
    expected = windowed.grey(as_bytes)
    np.testing.assert_array_equal(windowed.grey(path), expected)
    np.testing.assert_array_equal(windowed.grey(Image.open(path)), expected)
    assert (load(small_run, device="cpu").grey(path) != expected).any()
    predict_files(windowed, [path], tmp_path / "masks", grey=True)
    written = np.asarray(Image.open(tmp_path / "masks" / "grey" / "deep.png"))
    np.testing.assert_array_equal(written, np.rint(expected * 255).astype(np.uint8))
