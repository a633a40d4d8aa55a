"""A split in memory: what is read, scaled, packed and refused."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import torch
import zarr

from lmm.latents import in_batches, load_latents, model_latent, raw_latent
from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_a_latent_is_scaled_by_hand_computed_numbers() -> None:
    latent = torch.tensor([2.0, -4.0, 0.5], dtype=torch.float16)
    assert model_latent(latent, 0.5).tolist() == [1.0, -2.0, 0.25]
    assert model_latent(latent, 0.5, shift_factor=1.0).tolist() == [0.5, -2.5, -0.25]


def test_decoding_undoes_the_scaling() -> None:
    latent = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    z = model_latent(latent, 0.18215, 0.06)
    torch.testing.assert_close(raw_latent(z, 0.18215, 0.06), latent)


@small.ZARR_WARNS_OF_PACKED_BITS
def test_what_is_read_equals_plain_zarr_and_polars(small_store: str) -> None:
    store = open_store(small_store)
    rows = pl.read_parquet(Path(small_store) / "samples.parquet")
    places = [i for i, split in enumerate(rows["split"]) if split == "train"]
    plain = zarr.open_group(small_store, mode="r")
    latents = load_latents(store, "train", std=True)
    assert latents.sample_ids == [rows["sample_id"][i] for i in places]
    for name in ("image_mean", "image_std", "mask_mean"):
        np.testing.assert_array_equal(getattr(latents, name).numpy(), plain[name][:][:, places])
    assert latents.mask_bits is not None
    np.testing.assert_array_equal(
        latents.unpack(latents.mask_bits).numpy(), plain["mask"][:][:, places]
    )


def test_a_batch_pairs_each_image_with_its_own_mask_and_view(small_store: str) -> None:
    latents = load_latents(open_store(small_store), "train")
    view, sample = torch.tensor([2, 0, 1]), torch.tensor([1, 0, 1])
    batch = latents.batch(view, sample)
    assert latents.mask_bits is not None
    assert batch.mask is not None
    for i, (v, n) in enumerate(zip(view.tolist(), sample.tolist(), strict=True)):
        scale = latents.scaling_factor
        torch.testing.assert_close(batch.z_image[i], latents.image_mean[v, n].float() * scale)
        torch.testing.assert_close(batch.z_mask[i], latents.mask_mean[v, n].float() * scale)
        assert torch.equal(batch.mask[i], latents.unpack(latents.mask_bits[v, n]))


def test_posterior_modes_follow_their_formulas(small_store: str) -> None:
    latents = load_latents(open_store(small_store), "train", std=True)
    assert latents.image_std is not None
    view, sample = torch.tensor([1]), torch.tensor([0])
    noise = torch.full((1, *latents.image_mean.shape[2:]), 2.0)
    mean = latents.image_mean[1, 0].float()
    std = latents.image_std[1, 0].float()
    s = latents.scaling_factor
    expected = {"mean": s * mean, "sample": s * (mean + 2 * std), "gms": s * mean + 2 * std}
    for posterior, z_image in expected.items():
        batch = latents.batch(view, sample, posterior, noise)
        torch.testing.assert_close(batch.z_image[0], z_image)


def test_masks_of_a_width_that_is_no_multiple_of_eight_survive_packing(small_store: str) -> None:
    latents = load_latents(open_store(small_store), "train")
    rng = np.random.default_rng(0)
    mask = rng.random((3, 5, latents.size)) > 0.5
    packed = torch.from_numpy(np.packbits(mask, axis=-1))
    np.testing.assert_array_equal(latents.unpack(packed).numpy(), mask)


def test_fewer_views_are_the_first_ones(small_store: str) -> None:
    store = open_store(small_store)
    every, one = load_latents(store, "test"), load_latents(store, "test", views=1)
    assert one.views == 1
    assert torch.equal(one.image_mean[0], every.image_mean[0])


def test_what_is_not_asked_for_is_not_held(small_store: str) -> None:
    latents = load_latents(open_store(small_store), "train", masks=False)
    assert latents.mask_bits is None
    assert latents.image_std is None


def test_a_split_without_samples_is_named_with_those_that_have_some(small_store: str) -> None:
    with pytest.raises(UsageError, match=r"'validation', only in test, train, val"):
        load_latents(open_store(small_store), "validation")


def test_an_unfinished_store_is_refused(store_copy: Path) -> None:
    (store_copy / "receipt.json").unlink()
    with pytest.raises(ArtefactError, match="not finished"):
        load_latents(open_store(str(store_copy)), "train")


def test_a_missing_chunk_is_an_error_that_names_it(store_copy: Path) -> None:
    (store_copy / "mask_mean/c/1/0/0/0/0").unlink()
    with pytest.raises(ArtefactError, match="mask_mean/c/1/0/0/0/0 is missing"):
        load_latents(open_store(str(store_copy)), "train")


def test_a_flipped_bit_is_an_error_that_names_its_chunk(store_copy: Path) -> None:
    chunk = store_copy / "image_mean/c/2/0/0/0/0"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match="image_mean/c/2/0/0/0/0 is damaged"):
        load_latents(open_store(str(store_copy)), "train")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_values_that_nobody_encoded_never_reach_a_loss(store_copy: Path, value: float) -> None:
    """Written through zarr, so that the chunk's CRC is right."""
    array = zarr.open_group(str(store_copy))["mask_mean"]
    samples = open_store(str(store_copy)).samples
    row = samples["split"].to_list().index("train")
    array[1, row, 0, 0, 0] = value
    name = re.escape(samples["sample_id"][row])
    with pytest.raises(ArtefactError, match=f"mask_mean/c/1/0/0/0/0 holds something else .*{name}"):
        load_latents(open_store(str(store_copy)), "train")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("image_mean/c/1/0", "image_mean/c/2/0"),
        ("image_mean/c/1/0", "mask_mean/c/1/0"),
        ("mask/c/0/0", "mask/c/1/0"),
    ],
    ids=["views", "image and mask", "masks"],
)
def test_swapped_chunks_are_refused_although_each_is_whole(
    store_copy: Path, one: str, other: str
) -> None:
    swap(store_copy / one, store_copy / other)
    with pytest.raises(ArtefactError, match=rf"{one}[/0]* holds something else than was encoded"):
        load_latents(open_store(str(store_copy)), "train")


def test_views_swapped_with_their_keys_and_checksums_are_refused(store_copy: Path) -> None:
    """All that lies in the store agrees, but it is not what the view plan asks for."""
    for array in store_copy.glob("*/c"):
        swap(array / "1", array / "2")
    with pytest.raises(ArtefactError, match="c/1/0/0/0/0 holds something else than was encoded"):
        load_latents(open_store(str(store_copy)), "train")


def test_a_store_that_is_encoded_anew_while_it_is_read_is_refused(
    store_copy: Path, tokenizer: Tokenizer
) -> None:
    store = open_store(str(store_copy))

    def encode_anew(done: int, total: int) -> None:
        if done == 1:
            encode(store.source(), store.url, tokenizer, views=3, size=small.SIZE_PX, seed=1)

    with pytest.raises(ArtefactError, match="was changed while it was read"):
        load_latents(store, "train", progress=encode_anew)
    load_latents(open_store(str(store_copy)), "train")


def test_a_store_that_lost_its_receipt_while_it_was_read_is_refused(store_copy: Path) -> None:
    """What is encoded next may be what is read next."""
    with pytest.raises(ArtefactError, match="was changed while it was read"):
        load_latents(
            open_store(str(store_copy)),
            "train",
            progress=lambda done, total: (store_copy / "receipt.json").unlink(missing_ok=True),
        )


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (4, [4]), (7, [4, 3]), (8, [4, 4])])
def test_every_batch_has_one_shape_and_the_results_are_those_of_the_rows(
    n: int, sizes: list[int]
) -> None:
    rows = torch.arange(n * 6.0).view(n, 2, 3)
    shapes = []

    def sums(batch: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(batch.shape))
        return batch.sum(dim=(1, 2))

    found = list(in_batches(sums, rows, 4))
    assert shapes == [(4, 2, 3)] * len(sizes)
    assert [len(part) for part in found] == sizes
    assert torch.equal(torch.cat(found), rows.sum(dim=(1, 2)))
