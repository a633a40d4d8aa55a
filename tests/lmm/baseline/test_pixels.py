"""The pixels that a baseline trains on: those that the encoder is given, in the same order."""

import numpy as np
import pytest
import small
import torch

from lmm.baseline.pixels import ManifestImages, PixelBatches, read_pixels
from lmm.baseline.settings import FRESH, BaselineSettings
from lmm.batches import open_batches
from lmm.settings import TrainSettings
from pipeline.augment import apply_views, draw_views
from pipeline.errors import InputError, UsageError
from pipeline.pixels import to_pm1
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer

CPU = torch.device("cpu")


def batches(images: ManifestImages, **settings: object) -> PixelBatches:
    wanted = BaselineSettings(size=small.SIZE_PX, batch_size=1, **settings)
    return PixelBatches(read_pixels(images, "train"), wanted, CPU)


def test_clean_pixels_and_masks_are_those_of_the_store(
    small_manifest: ManifestImages, small_store: str
) -> None:
    store = open_store(small_store)
    places = store.samples["sample_id"].to_list()
    for images in (small_manifest, store):
        pixels = read_pixels(images, "train")
        assert pixels.sample_ids == sorted(store.samples.filter(split="train")["sample_id"])
        for name, mask in zip(pixels.sample_ids, pixels.clean_masks, strict=True):
            np.testing.assert_array_equal(mask, store.array("mask")[0, places.index(name)])


@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_batches_are_what_the_latents_of_the_same_epoch_were_encoded_from(
    epoch: int, small_manifest: ManifestImages, small_store: str, tokenizer: Tokenizer
) -> None:
    store = open_store(small_store)
    latents = open_batches(store, TrainSettings(batch_size=1, seed=3), CPU)
    pixels = batches(small_manifest, views=3, seed=3)
    assert len(pixels) == len(latents) > 2
    for ours, theirs in zip(pixels.epoch(epoch), latents.epoch(epoch), strict=True):
        assert theirs.mask is not None
        assert torch.equal(ours.mask, theirs.mask)
        z_image = tokenizer.encode(ours.image_pm1)[0] * tokenizer.scaling_factor
        spread = theirs.z_image.std()
        assert torch.allclose(z_image, theirs.z_image, atol=2e-3 * float(spread))


def test_fresh_views_are_the_plan_s_view_of_the_epoch(small_manifest: ManifestImages) -> None:
    pixels = read_pixels(small_manifest, "train")
    plan = draw_views(pixels.sample_ids, 8, seed=4).filter(view=7)
    expected = apply_views(pixels.images_u8, pixels.clean_masks, plan)[0]
    found = [b.image_pm1 for b in batches(small_manifest, views=FRESH, view_seed=4).epoch(7)]
    order = [next(i for i, one in enumerate(expected) if torch.equal(one, f[0])) for f in found]
    assert sorted(order) == list(range(len(pixels)))
    assert not any(torch.equal(f[0], to_pm1(clean)) for f in found for clean in pixels.images_u8)


def test_an_epoch_is_a_function_of_seed_and_epoch(small_manifest: ManifestImages) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return torch.cat([b.image_pm1 for b in batches(small_manifest, seed=seed).epoch(epoch)])

    assert torch.equal(first(0, 1), first(0, 1))
    assert not torch.equal(first(0, 1), first(0, 2))
    assert not torch.equal(first(0, 1), first(1, 1))


def test_a_split_without_samples_is_refused_by_name(small_manifest: ManifestImages) -> None:
    with pytest.raises(UsageError, match="no sample in split 'other', only in test, train, val"):
        read_pixels(small_manifest, "other")


def test_an_image_that_changed_is_refused_by_name(
    small_manifest: ManifestImages, raw: object, tmp_path: object
) -> None:
    manifest = small.ingest(raw)  # type: ignore[arg-type]
    name = manifest.frame.filter(split="train")["sample_id"][0]
    small.edit_image(raw, name)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="changed since it was ingested"):
        read_pixels(ManifestImages("m.parquet", manifest, 64), "train")
