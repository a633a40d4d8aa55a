"""pipeline.encode.job: every cell once, as asked for, and other settings refused by name."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
import zarr
from diffusers import AutoencoderTiny
from encoded import Stressed, counts, files, run
from PIL import Image

from pipeline.encode import encode
from pipeline.errors import UsageError
from pipeline.manifest import Manifest
from pipeline.samples import decode_sample
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer, load_tokenizer

# --- once and again


def test_first_run_encodes_every_cell_and_counts_them(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    calls: list[tuple[int, int]] = []
    report = run(
        small.ingest(raw), url, tokenizer, views=3, progress=lambda *done: calls.append(done)
    )
    assert counts(report) == (18, 0, 18)
    assert report.complete
    assert report.samples_per_s == pytest.approx(18 / report.seconds)
    assert calls == [(6, 18), (12, 18), (18, 18)]
    open_store(url).require_complete()


@small.ZARR_WARNS_OF_PACKED_BITS
def test_cells_are_what_the_tokenizer_makes_of_pillows_pixels(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    """View 0 by hand: resized by Pillow, scaled to [-1, 1], encoded by the model itself."""
    run(small.ingest(raw), url, tokenizer, views=1)
    group = zarr.open_group(url, mode="r")
    side = (small.SIZE_PX, small.SIZE_PX)
    with Image.open(small.image_path(raw, "benign (2)")) as image:
        pixels = np.array(image.resize(side, Image.Resampling.BILINEAR))
    with Image.open(raw / "Dataset_BUSI_with_GT/benign/benign (2)_mask.png") as mask_image:
        mask = np.array(mask_image.resize(side, Image.Resampling.NEAREST)) > 0
    image_pm1 = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    mask_pm1 = torch.from_numpy(mask).float().expand(3, -1, -1) * 2 - 1
    with torch.no_grad():
        posterior = tokenizer.autoencoder.encode(torch.stack([image_pm1, mask_pm1])).latent_dist
    close = {"rtol": 2e-3, "atol": 2e-3}  # of float16
    np.testing.assert_array_equal(group["mask"][0, 1], mask)
    np.testing.assert_allclose(group["image_mean"][0, 1], posterior.mean[0], **close)
    np.testing.assert_allclose(group["image_std"][0, 1], posterior.std[0], **close)
    np.testing.assert_allclose(group["mask_mean"][0, 1], posterior.mean[1], **close)


@pytest.mark.usefixtures("three_shards")
def test_at_most_one_block_is_decoded_ahead_of_the_one_in_hand(
    raw: Path, url: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    seen: list[int] = []

    def decode(manifest: Manifest, row: dict[str, Any], size: int) -> Any:
        begun.append(row["sample_id"])
        return decode_sample(manifest, row, size)

    def encode_counting(pixels: torch.Tensor, precision: str) -> Any:
        seen.append(len(begun))
        return tokenizer.encode(pixels, precision)

    monkeypatch.setattr("pipeline.encode.job.decode_sample", decode)
    stressed: Any = Stressed(tokenizer, encode_counting)
    run(small.ingest(raw), url, stressed, views=1, batch_size=2)
    assert len(seen) == 3
    assert 2 <= seen[0] <= 4
    assert 4 <= seen[1] <= seen[2] == 6
    assert sorted(begun) == sorted(small.SAMPLES)


def test_second_run_encodes_nothing_and_touches_no_file(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    run(small.ingest(raw), url, tokenizer)
    before = files(url)
    assert counts(run(small.ingest(raw), url, tokenizer)) == (0, 12, 12)
    assert files(url) == before


def test_equal_inputs_give_equal_receipts_wherever_they_lie(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run(small.ingest(raw), url, tokenizer)
    moved = Path(shutil.copytree(raw, tmp_path / "elsewhere"))
    run(small.ingest(moved), str(tmp_path / "other.zarr"), tokenizer, batch_size=1)
    receipts = [
        Path(place, "receipt.json").read_bytes() for place in (url, tmp_path / "other.zarr")
    ]
    assert receipts[0] == receipts[1]


def test_deterministic_tokenizer_stores_no_std(raw: Path, url: str, tmp_path: Path) -> None:
    small.small_tiny().save_pretrained(tmp_path / "tiny")
    run(small.ingest(raw), url, load_tokenizer(str(tmp_path / "tiny")))
    assert open_store(url).latent_arrays == ["image_mean", "mask_mean"]
    open_store(url).require_complete()


# --- refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 72}, "size 64, asked for is 72"),
        ({"precision": "bf16"}, "precision fp32, asked for is bf16"),
    ],
    ids=["size", "precision"],
)
def test_other_settings_are_refused_by_name(
    raw: Path, url: str, tokenizer: Tokenizer, settings: dict[str, Any], words: str
) -> None:
    run(small.ingest(raw), url, tokenizer)
    before = files(url)
    with pytest.raises(UsageError, match=words):
        run(small.ingest(raw), url, tokenizer, **settings)
    assert files(url) == before


def test_another_tokenizer_is_refused_by_name(raw: Path, url: str, tokenizer: Tokenizer) -> None:
    run(small.ingest(raw), url, tokenizer)
    before = files(url)
    other = Tokenizer("the other one", small.small_kl(seed=1), torch.device("cpu"))
    with pytest.raises(UsageError, match="the other one") as caught:
        run(small.ingest(raw), url, other)
    assert tokenizer.name in caught.value.message
    assert files(url) == before


def test_same_tokenizer_under_another_name_is_the_same(
    raw: Path, url: str, tokenizer: Tokenizer, kl_folder: Path, tmp_path: Path
) -> None:
    run(small.ingest(raw), url, tokenizer)
    moved = load_tokenizer(str(shutil.copytree(kl_folder, tmp_path / "moved")))
    assert run(small.ingest(raw), url, moved).encoded == 0


def test_size_that_does_not_divide_is_refused_before_anything_is_written(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UsageError, match="multiple of 8"):
        run(small.ingest(raw), url, tokenizer, size=60)
    assert not Path(url).exists()


# --- with published weights


@small.ZARR_WARNS_OF_PACKED_BITS
def test_diffusers_alone_decodes_a_stored_mask_latent_into_the_stored_mask(
    assets: Path, tmp_path: Path
) -> None:
    origin = assets / "data" / "busi" / "Dataset_BUSI_with_GT"
    for name in ("benign/benign (10)", "malignant/malignant (20)", "malignant/malignant (5)"):
        for path in origin.glob(f"{name}*.png"):
            place = tmp_path / "raw" / path.relative_to(origin.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    url, taesd = str(tmp_path / "s.zarr"), str(assets / "weights" / "taesd")
    encode(small.ingest(tmp_path / "raw"), url, load_tokenizer(taesd), views=1)
    group = zarr.open_group(url, mode="r")
    latents = torch.from_numpy(group["mask_mean"][0]).float()
    with torch.no_grad():
        pixels = AutoencoderTiny.from_pretrained(taesd).decode(latents).sample
    masks, decoded = group["mask"][0], (pixels.mean(dim=1) > 0).numpy()
    dsc = 2 * (masks & decoded).sum(axis=(1, 2)) / (masks.sum((1, 2)) + decoded.sum((1, 2)))
    assert masks.any(axis=(1, 2)).all()
    assert dsc.min() > 0.98
