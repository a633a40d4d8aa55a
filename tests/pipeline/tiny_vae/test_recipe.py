"""The embedded tokenizer: what ships loads, is small and good; its recipe can be gone on with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from pipeline.fidelity import mask_dsc
from pipeline.images import resize_image, resize_mask
from pipeline.phantoms import draw_phantom, write_phantoms
from pipeline.tiny_vae import pictures as tiny_vae_pictures
from pipeline.tiny_vae import recipe as tiny_vae
from pipeline.tiny_vae.pictures import PHOTOS, Pictures
from pipeline.tiny_vae.recipe import Recipe, export, train
from pipeline.tiny_vae.scores import (
    read_pairs,
    round_trip,
    score_extremes,
    score_fidelity,
)
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.weights import TINY_VAE

FRESH_SEED = 77  # no phantom of this seed was trained on


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return load_tokenizer("tiny-vae")


def phantom_pixels(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and masks of `count` fresh phantoms, (count, 3, 224, 224) in [-1, 1]."""
    drawn = [draw_phantom(FRESH_SEED, ("benign", "malignant")[i % 2], i + 1) for i in range(count)]
    images = [resize_image(np.stack([p.image_u8] * 3, axis=2), 224) for p in drawn]
    masks = [resize_mask(np.any(p.masks, axis=0), 224) for p in drawn]
    images_pm1 = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    masks_pm1 = torch.from_numpy(np.stack(masks))[:, None].expand(-1, 3, -1, -1) * 2.0 - 1
    return images_pm1, masks_pm1


def test_shipped_weights_load_through_plain_diffusers() -> None:
    model = AutoencoderKL.from_pretrained(TINY_VAE, low_cpu_mem_usage=False)
    assert model.config.latent_channels == 4
    assert model.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 4, 8, 8)
    assert sum(weight.numel() for weight in model.parameters()) < 1_900_000


def test_the_asset_is_at_most_four_megabytes_and_has_a_card() -> None:
    assert {path.name for path in TINY_VAE.iterdir()} == {
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    assert sum(path.stat().st_size for path in TINY_VAE.iterdir()) <= 4_000_000


def test_black_white_and_noise_stay_finite(shipped: Tokenizer) -> None:
    assert score_extremes(shipped) == {"finite on black, white, noise": 1.0}


def test_masks_of_fresh_phantoms_survive_the_round_trip(shipped: Tokenizer) -> None:
    _, masks = phantom_pixels(12)
    output, _, _ = round_trip(shipped, masks)
    dsc = mask_dsc(output, masks[:, 0] > 0)
    assert dsc.mean() >= 0.98
    assert dsc.min() >= 0.95


def test_an_empty_and_a_full_mask_survive_the_round_trip(shipped: Tokenizer) -> None:
    plain = torch.stack([torch.full((3, 224, 224), -1.0), torch.ones(3, 224, 224)])
    output, _, _ = round_trip(shipped, plain)
    found = (output.mean(1) > 0).float().mean((1, 2))
    assert found.tolist() == [0.0, 1.0]


def test_scaled_latents_have_unit_spread_and_the_posterior_is_alive(shipped: Tokenizer) -> None:
    images, masks = phantom_pixels(12)
    _, image_mean, std = round_trip(shipped, images)
    _, mask_mean, _ = round_trip(shipped, masks)
    assert 0.7 < shipped.scaling_factor * image_mean.std() < 1.4
    assert 0.7 < shipped.scaling_factor * mask_mean.std() < 2.5
    assert 0.03 < shipped.scaling_factor * std.median() < 0.3


def test_real_busi_images_and_masks_survive_the_round_trip(
    shipped: Tokenizer, assets: Path
) -> None:
    split = assets / "splits" / "gms" / "busi_train_test_names.pkl"
    pairs = read_pairs("busi", assets / "data" / "busi", split, "test", limit=16)
    scores = score_fidelity(shipped, "busi", pairs)
    assert scores["busi images"] == 16
    assert scores["busi mask DSC, mean"] >= 0.99
    assert scores["busi mask DSC, worst"] >= 0.95
    assert scores["busi image PSNR, dB"] >= 27


@pytest.fixture
def make_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Pictures]:
    """The recipe's pictures, with phantoms as ultrasound and noise as photographs."""
    monkeypatch.setattr(tiny_vae_pictures, "PHANTOM_COUNT", 3)
    write_phantoms(tmp_path / "busi", 6)
    split = tmp_path / "split.csv"
    names = [f"{kind} ({i})" for kind in ("benign", "malignant") for i in (1, 2)]
    split.write_text("sample_id,split\n" + "".join(f"{name},train\n" for name in names))
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in PHOTOS:
        Image.fromarray(noise).save(tmp_path / "photos" / name)
    return lambda: Pictures(tmp_path / "busi", split, tmp_path / "photos", seed=0)


def test_a_batch_is_a_pure_function_of_its_step(make_pictures: Callable[[], Pictures]) -> None:
    pictures = make_pictures()
    assert len(pictures.ultrasound) == 4
    first = pictures.batch(3, 24, 32)
    assert first.shape == (24, 3, 32, 32)
    assert first.dtype == torch.float32
    assert first.min() >= -1
    assert first.max() <= 1
    assert torch.equal(first, make_pictures().batch(3, 24, 32))
    assert not torch.equal(first, pictures.batch(4, 24, 32))


def test_interrupted_training_goes_on_to_the_same_weights(
    make_pictures: Callable[[], Pictures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_vae, "SAVE_EVERY", 2)
    torch.manual_seed(1)
    teacher = AutoencoderTiny(encoder_block_out_channels=(8,) * 4).eval()
    recipe = Recipe(steps=4, phases=((0.5, 2, 32), (1.0, 1, 64)), warmup_steps=1)
    pictures = make_pictures()

    def run(work: str) -> dict[str, Any]:
        model = train(pictures, teacher, recipe, tmp_path / work, lambda _: None)
        return dict(model.state_dict())

    whole = run("whole")
    draw = pictures.batch
    monkeypatch.setattr(
        pictures, "batch", lambda step, *size: draw(step, *size) if step < 3 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run("broken")
    monkeypatch.setattr(pictures, "batch", draw)
    resumed = run("broken")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_export_stores_half_precision_and_the_scaling_factor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_vae.build_model()
    export(model, 0.81234567, tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert loaded.config.scaling_factor == 0.8123
    weight = loaded.encoder.conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.encoder.conv_in.weight.half().float())
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 3_700_000
