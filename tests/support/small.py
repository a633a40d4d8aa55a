"""Small stand-ins: six images in BUSI's layout, and tokenizers with random weights."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from PIL import Image, ImageChops, ImageOps

from pipeline.archive import build_manifest
from pipeline.manifest import Manifest

# Of who reads the masks with zarr alone; the product itself gives no warning.
ZARR_WARNS_OF_PACKED_BITS = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in")
SIZE_PX = 64
SAMPLES = ("benign (1)", "benign (2)", "benign (3)", "benign (4)", "malignant (1)", "malignant (2)")


def write_busi(root: Path, names: tuple[str, ...] = SAMPLES) -> Path:
    """Colour gradients with noise, and a box as mask; no two alike, benign (1) has two masks."""
    for name in names:
        path = image_path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        index = SAMPLES.index(name) if name in SAMPLES else zlib.crc32(name.encode()) % 1000
        height_px, top_px = 70 + index % 10, 10 + index % 10
        write_image(path, index, height_px)
        box = np.zeros((height_px, 80), dtype=np.uint8)
        box[top_px:40, 20:60] = 255
        Image.fromarray(box).save(path.with_name(f"{name}_mask.png"))
        if name == "benign (1)":
            Image.fromarray(np.roll(box, 20, axis=0)).save(path.with_name(f"{name}_mask_1.png"))
    return root


def write_image(path: Path, seed: int, height_px: int) -> None:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, 80)[None, :, None] * rng.uniform(0.3, 1, 3)
    noise = rng.integers(0, 50, (height_px, 80, 3))
    Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)).save(path)


def edit_image(root: Path, sample_id: str) -> None:
    """Other pixels of the same size in the same file."""
    with Image.open(image_path(root, sample_id)) as image:
        inverted = ImageChops.invert(image)
    inverted.save(image_path(root, sample_id))


def turn_mask(path: Path) -> None:
    """The mask of a file, upside down."""
    with Image.open(path) as mask:
        turned = ImageOps.flip(mask)
    turned.save(path)


def image_path(root: Path, sample_id: str) -> Path:
    return root / "Dataset_BUSI_with_GT" / sample_id.split(" ")[0] / f"{sample_id}.png"


def without(manifest: Manifest, *sample_ids: str) -> Manifest:
    """A manifest from which some samples have left."""
    return replace(manifest, frame=manifest.frame.filter(~pl.col("sample_id").is_in(sample_ids)))


def ingest(root: Path, seed: int = 0) -> Manifest:
    return build_manifest(root, "busi", split=(0.5, 0.5), val_fraction=0.0, seed=seed).manifest


def small_kl(seed: int = 0) -> AutoencoderKL:
    """Down-sampling 8, four latent channels, as SD-VAE."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SIZE_PX,
    ).eval()


def small_tiny(seed: int = 0) -> AutoencoderTiny:
    torch.manual_seed(seed)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()


def small_vq(seed: int = 0) -> VQModel:
    """Down-sampling 2, three latent channels."""
    torch.manual_seed(seed)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=16,
    ).eval()
