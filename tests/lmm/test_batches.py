"""Batches of an epoch: every sample once, a function of seed and epoch, from memory or streamed."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import small
import torch

import pipeline.store.create
from lmm.batches import Batches, Resident, Streamed, open_batches
from lmm.latents import Batch, load_latents
from lmm.settings import TrainSettings
from pipeline.archive import build_manifest
from pipeline.encode import encode
from pipeline.errors import ArtefactError
from pipeline.store import LatentStore, open_store
from pipeline.tokenizer import load_tokenizer

CPU = torch.device("cpu")
SETTINGS = TrainSettings(loss="compound", batch_size=3)
NAMES = tuple(f"benign ({number})" for number in range(1, 18))
# One cell: latents (4, 8, 8) of image mean and mask mean in float16, a 64 × 64 mask.
CELL_BYTES = 2 * 4 * 8 * 8 * 2 + 64 * 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, kl_folder: Path) -> LatentStore:
    """Seventeen samples, most of them in train, in shards of two, with three views."""
    folder = tmp_path_factory.mktemp("many")
    root = small.write_busi(folder / "raw", NAMES)
    manifest = build_manifest(root, "busi", split=(0.8, 0.2), val_fraction=0.1).manifest
    url = str(folder / "many.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.store.create, "SHARD_SAMPLES", 2)
        encode(manifest, url, load_tokenizer(str(kl_folder)), views=3, size=small.SIZE_PX)
    return open_store(url)


@pytest.fixture(params=["ram", "stream"])
def batches(request: pytest.FixtureRequest, store: LatentStore) -> Batches:
    # Room for groups of two shards of two cells.
    settings = replace(SETTINGS, residency=request.param, memory_gib=16 * CELL_BYTES / 2**30)
    return open_batches(store, settings, CPU)


def cells_by_content(store: LatentStore) -> dict[tuple[float, ...], tuple[int, int]]:
    """(view, row) by image latent: a latent tells whose it is."""
    latents = load_latents(store, "train")
    return {
        tuple(latents.image_mean[v, n].flatten().tolist()): (v, n)
        for v in reversed(range(latents.views))  # of views that came out alike, the first
        for n in range(len(latents))
    }


def seen(some: Iterator[Batch], store: LatentStore) -> list[tuple[int, int]]:
    known = cells_by_content(store)
    s = store.tokenizer["scaling_factor"]
    images = torch.cat([batch.z_image for batch in some]) / s
    return [known[tuple(image.half().flatten().tolist())] for image in images]


def test_each_sample_is_seen_at_most_once_an_epoch_and_epochs_differ(
    batches: Batches, store: LatentStore
) -> None:
    whole = len(batches) // 3 * 3
    epochs = [seen(batches.epoch(epoch), store) for epoch in (1, 2, 3)]
    for cells in epochs:
        assert len(cells) == len({row for _, row in cells}) == whole
    assert epochs[0] != epochs[1] != epochs[2]
    # Not each epoch leaves the same samples out, and views vary.
    assert {row for cells in epochs for _, row in cells} == set(range(len(batches)))
    assert {view for cells in epochs for view, _ in cells} == {0, 1, 2}


def test_an_epoch_is_a_function_of_seed_and_epoch(batches: Batches) -> None:
    for a, b in zip(batches.epoch(5), batches.epoch(5), strict=True):
        assert torch.equal(a.z_image, b.z_image)
        assert torch.equal(a.z_mask, b.z_mask)
        assert a.mask is not None
        assert b.mask is not None
        assert torch.equal(a.mask, b.mask)


def test_a_batch_pairs_each_image_with_its_own_mask(batches: Batches, store: LatentStore) -> None:
    latents = load_latents(store, "train")
    assert latents.mask_bits is not None
    for batch in batches.epoch(1):
        for i, (view, row) in enumerate(seen(iter([batch]), store)):
            assert batch.mask is not None
            # Views of a sample may share an image latent only when they share everything.
            assert torch.equal(batch.mask[i], latents.unpack(latents.mask_bits[view, row]))


def test_fewer_samples_than_a_batch_make_one_smaller_batch(store: LatentStore) -> None:
    for residency in ("ram", "stream"):
        settings = replace(SETTINGS, residency=residency, batch_size=64)
        some = open_batches(store, settings, CPU)
        assert [len(batch.z_image) for batch in some.epoch(1)] == [len(some)]


def test_a_group_of_fewer_cells_than_a_batch_makes_no_empty_batch(store: LatentStore) -> None:
    settings = replace(SETTINGS, residency="stream", batch_size=5, memory_gib=1e-9)
    sizes = [len(batch.z_image) for batch in open_batches(store, settings, CPU).epoch(1)]
    assert set(sizes) == {5}


def test_a_streamed_shard_comes_in_one_view_an_epoch(store: LatentStore) -> None:
    settings = replace(SETTINGS, residency="stream", batch_size=1, memory_gib=1e-9)
    streamed = open_batches(store, settings, CPU)
    assert isinstance(streamed, Streamed)
    places = streamed.reader.places
    views: dict[int, set[int]] = {}
    for view, row in seen(streamed.epoch(1), store):
        views.setdefault(int(places[row]) // 2, set()).add(view)
    assert all(len(drawn) == 1 for drawn in views.values())
    assert len(set.union(*views.values())) > 1


def test_memory_decides_between_ram_and_stream_and_how_much_is_mixed(store: LatentStore) -> None:
    samples = store.samples["split"].to_list().count("train")
    needed = samples * 3 * CELL_BYTES

    def opened(memory_bytes: int) -> Batches:
        return open_batches(store, replace(SETTINGS, memory_gib=memory_bytes / 2**30), CPU)

    assert isinstance(opened(needed), Resident)
    streamed = opened(needed - 1)
    assert isinstance(streamed, Streamed)
    # Two cells a shard; a group in use and one being read, each twice while it is put together.
    assert streamed.shards_at_a_time == (needed - 1) // (2 * CELL_BYTES) // 4


def test_what_a_loss_or_posterior_does_not_need_is_not_read(store: LatentStore) -> None:
    for residency in ("ram", "stream"):
        some = open_batches(store, replace(SETTINGS, loss="lm", residency=residency), CPU)
        assert next(iter(some.epoch(1))).mask is None
    for posterior, read in (("mean", False), ("sample", True), ("gms", True)):
        resident = open_batches(store, replace(SETTINGS, posterior=posterior), CPU)
        assert isinstance(resident, Resident)
        assert (resident.latents.image_std is not None) == read


def test_a_damaged_chunk_is_an_error_that_names_it_in_the_midst_of_streaming(
    store: LatentStore, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(store.root, tmp_path / "copy.zarr"))
    settings = replace(SETTINGS, residency="stream", memory_gib=1e-9)
    streamed = open_batches(open_store(str(copy)), settings, CPU)
    chunk = copy / "mask_mean" / "c" / "1" / "0" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[10] ^= 1
    chunk.write_bytes(content)
    # Enough epochs for one to draw that view for that shard.
    epochs = chain.from_iterable(map(streamed.epoch, range(1, 30)))
    with pytest.raises(ArtefactError, match="mask_mean/c/1/0/0/0/0 is damaged"):
        list(epochs)


def test_a_store_encoded_anew_under_a_stream_ends_it_before_a_wrong_batch(
    store: LatentStore, kl_folder: Path, tmp_path: Path
) -> None:
    """View 0 would still be right in the new store, and every chunk is whole at every moment."""
    copy = str(shutil.copytree(store.root, tmp_path / "copy.zarr"))
    settings = replace(SETTINGS, residency="stream", batch_size=1, memory_gib=1e-9)
    streamed = open_batches(open_store(copy), settings, CPU)
    epochs = chain.from_iterable(map(streamed.epoch, range(1, 30)))
    received = [next(epochs)]
    manifest = open_store(copy).source()
    encode(manifest, copy, load_tokenizer(str(kl_folder)), views=3, size=small.SIZE_PX, seed=1)
    with pytest.raises(ArtefactError, match="was changed while it was read"):
        received += epochs
    # What was read ahead is right; `seen` knows the cells of the store as it was alone.
    assert len(seen(iter(received), store)) <= 4


def test_gms_noise_comes_on_about_half_of_the_batches(store: LatentStore) -> None:
    def epoch_of(posterior: str, epoch: int) -> Iterator[Batch]:
        settings = replace(SETTINGS, posterior=posterior, batch_size=1)
        return open_batches(store, settings, CPU).epoch(epoch)

    differs = [
        not torch.equal(a.z_image, b.z_image)
        for epoch in range(1, 21)
        for a, b in zip(epoch_of("gms", epoch), epoch_of("mean", epoch), strict=True)
    ]
    assert 0.4 < sum(differs) / len(differs) < 0.6
