"""Encoding: every cell once, whatever is changed, added, taken away or killed in between."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import small
import torch
import zarr
from diffusers import AutoencoderTiny
from PIL import Image

from pipeline.encode import EncodeReport, encode
from pipeline.errors import ArtefactError, InputError, UsageError
from pipeline.manifest import Manifest, write_manifest
from pipeline.store import open_store
from pipeline.store.lock import writer_lock
from pipeline.store.receipt import array_digests
from pipeline.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture
def three_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples a shard, so that six samples are three of them."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)


def run(manifest: Manifest, url: str, tokenizer: Tokenizer, **settings: Any) -> EncodeReport:
    return encode(manifest, url, tokenizer, **{"views": 2, "size": small.SIZE_PX, **settings})


def files(url: str) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file of a store."""
    found = [path for path in Path(url).rglob("*") if path.is_file()]
    return {str(p.relative_to(url)): (p.read_bytes(), p.stat().st_mtime_ns) for p in found}


def digests(url: str) -> dict[str, str]:
    return array_digests(open_store(url))


def fresh_digests(
    manifest: Manifest, tokenizer: Tokenizer, tmp_path: Path, **settings: Any
) -> dict[str, str]:
    """What an encode that nothing disturbs gives."""
    url = str(tmp_path / "undisturbed.zarr")
    run(manifest, url, tokenizer, **settings)
    return digests(url)


def counts(report: EncodeReport) -> tuple[int, int, int]:
    return report.encoded, report.reused, report.present


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


# --- stopped in the middle


@pytest.mark.usefixtures("three_shards")
def test_stopped_encode_goes_on_to_the_same_store(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def stop(done: int, _total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small.ingest(raw), url, tokenizer, progress=stop)
    store = open_store(url)
    assert store.receipt() is None
    with pytest.raises(ArtefactError, match="6 of 12 cells are missing"):
        store.require_complete()
    assert counts(run(small.ingest(raw), url, tokenizer)) == (6, 6, 12)
    assert digests(url) == fresh_digests(small.ingest(raw), tokenizer, tmp_path)


KILLED = """
import os, signal, sys
import pipeline.store.create, pipeline.encode.job
pipeline.store.create.SHARD_SAMPLES = 2
from pipeline.manifest import read_manifest
from pipeline.tokenizer import load_tokenizer

def kill(done, total):
    if done >= 6:
        os.kill(os.getpid(), signal.SIGKILL)

manifest, url, tokenizer, size = sys.argv[1:]
pipeline.encode.job.encode(
    read_manifest(manifest), url, load_tokenizer(tokenizer), views=2, size=int(size), progress=kill
)
"""


@pytest.mark.usefixtures("three_shards")
def test_killed_encode_goes_on_to_the_same_store(
    raw: Path, url: str, tokenizer: Tokenizer, kl_folder: Path, tmp_path: Path
) -> None:
    write_manifest(small.ingest(raw), tmp_path / "m.parquet")
    words = [str(tmp_path / "m.parquet"), url, str(kl_folder), str(small.SIZE_PX)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        cwd=Path(__file__).parents[3],
        # Another number of threads sums in another order, and the last bit shows it.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert open_store(url).receipt() is None
    assert counts(run(small.ingest(raw), url, tokenizer)) == (6, 6, 12)
    assert digests(url) == fresh_digests(small.ingest(raw), tokenizer, tmp_path)


@pytest.mark.usefixtures("three_shards")
def test_no_cell_is_encoded_before_the_last_shard_is_in_the_store(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    """So that a process killed at any moment has one shard at most to encode again."""
    present: list[int] = []

    def look_first(pixels: torch.Tensor, precision: str) -> Any:
        present.append(int(open_store(url).present().sum()))
        return tokenizer.encode(pixels, precision)

    stressed: Any = Stressed(tokenizer, look_first)
    run(small.ingest(raw), url, stressed, batch_size=1)
    assert present == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]


@pytest.fixture
def fail_at_write(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the n-th write into any array be the last, as if the disk were full."""
    write = zarr.Array.__setitem__

    def arm(n: int) -> None:
        left = [n]

        def fail_later(array: Any, place: Any, value: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError("No space left on device")
            write(array, place, value)

        monkeypatch.setattr(zarr.Array, "__setitem__", fail_later)

    return arm


@pytest.mark.parametrize("taken_back", [False, True])
@pytest.mark.parametrize("writes", range(7))
def test_whichever_write_fails_no_key_vouches_for_other_data(
    raw: Path,
    url: str,
    tokenizer: Tokenizer,
    tmp_path: Path,
    fail_at_write: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
    taken_back: bool,
) -> None:
    """An edited image is encoded again, the disk fills up, and the edit is taken back or not."""
    run(small.ingest(raw), url, tokenizer, views=1)
    small.edit_image(raw, "benign (3)")
    with monkeypatch.context():
        # One shard is seven writes: its keys cleared, four arrays, checksums, keys.
        fail_at_write(writes)
        with pytest.raises(OSError, match="No space left"):
            run(small.ingest(raw), url, tokenizer, views=1)
    monkeypatch.undo()
    assert open_store(url).receipt() is None
    if taken_back:
        small.edit_image(raw, "benign (3)")  # inverted twice is as it was
    wanted = small.ingest(raw)
    # Before the first write the old key vouches for the old data.
    redone = 0 if taken_back and not writes else 1
    assert counts(run(wanted, url, tokenizer, views=1)) == (redone, 6 - redone, 6)
    assert digests(url) == fresh_digests(wanted, tokenizer, tmp_path, views=1)


@pytest.mark.parametrize("leftover", ["empty folder", "group alone", "no attributes"])
def test_creation_that_was_cut_short_is_begun_anew(
    raw: Path, url: str, tokenizer: Tokenizer, leftover: str
) -> None:
    Path(url).mkdir()
    if leftover != "empty folder":
        group = zarr.create_group(url)
        Path(url, "zarr.1f.partial").write_text("{")
        if leftover == "no attributes":
            group.create_array("image_mean", shape=(1, 2), dtype="float16")
    assert counts(run(small.ingest(raw), url, tokenizer)) == (12, 0, 12)
    assert open_store(url).array("image_mean").ndim == 5


def test_store_that_someone_else_writes_to_is_left_alone(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    run(small.ingest(raw), url, tokenizer)
    before = files(url)
    with writer_lock(url), pytest.raises(ArtefactError, match="is held by encode"):
        run(small.ingest(raw), url, tokenizer, views=3)
    assert files(url) == before


def test_folder_with_other_files_is_refused(raw: Path, tokenizer: Tokenizer) -> None:
    before = sorted(raw.rglob("*"))
    with pytest.raises(UsageError, match="is not a latent store") as caught:
        run(small.ingest(raw), str(raw), tokenizer)
    assert "does not exist yet" in caught.value.fix
    assert sorted(raw.rglob("*")) == before


# --- changed in between


def test_edited_image_is_encoded_again_and_no_other(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run(small.ingest(raw), url, tokenizer, views=3)
    before = open_store(url).read_shard("image_mean", 1, 0)
    small.edit_image(raw, "benign (3)")
    assert counts(run(small.ingest(raw), url, tokenizer, views=3)) == (3, 15, 18)
    after = open_store(url).read_shard("image_mean", 1, 0)
    changed = (before != after).any(axis=(1, 2, 3))
    assert changed.tolist() == [False, False, True, False, False, False]
    assert digests(url) == fresh_digests(small.ingest(raw), tokenizer, tmp_path, views=3)


def test_image_that_changed_since_ingest_is_named(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    manifest = small.ingest(raw)
    small.edit_image(raw, "malignant (1)")
    with pytest.raises(InputError, match="changed since it was ingested") as caught:
        run(manifest, url, tokenizer)
    assert str(small.image_path(raw, "malignant (1)")) in caught.value.message
    assert "gms-lmm ingest" in caught.value.fix


def test_mask_that_changed_since_ingest_is_named(raw: Path, url: str, tokenizer: Tokenizer) -> None:
    manifest = small.ingest(raw)
    mask = raw / "Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png"  # the second of its two
    small.turn_mask(mask)
    with pytest.raises(InputError, match="changed since it was ingested") as caught:
        run(manifest, url, tokenizer)
    assert str(mask) in caught.value.message


def test_image_that_is_gone_is_named(raw: Path, url: str, tokenizer: Tokenizer) -> None:
    manifest = small.ingest(raw)
    small.image_path(raw, "malignant (1)").unlink()
    with pytest.raises(InputError, match=r"malignant \(1\)\.png cannot be read"):
        run(manifest, url, tokenizer)


def test_more_views_encode_only_the_new_ones(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest = small.ingest(raw)
    run(manifest, url, tokenizer, views=1)
    assert counts(run(manifest, url, tokenizer, views=3)) == (12, 6, 18)
    assert digests(url) == fresh_digests(manifest, tokenizer, tmp_path, views=3)


def test_fewer_views_and_then_more_reuse_what_there_was(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    manifest = small.ingest(raw)
    run(manifest, url, tokenizer, views=3)
    before = digests(url)
    assert counts(run(manifest, url, tokenizer, views=1)) == (0, 6, 6)
    assert open_store(url).views == 1
    assert counts(run(manifest, url, tokenizer, views=3)) == (0, 18, 18)
    assert digests(url) == before


def test_another_seed_redraws_the_views_and_keeps_the_clean_one(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest = small.ingest(raw)
    run(manifest, url, tokenizer, views=2)
    report = run(manifest, url, tokenizer, views=2, seed=1)
    # A view that is drawn alike under both seeds, such as the clean one, is not encoded again.
    assert 3 <= report.encoded <= 6
    assert report.reused == 12 - report.encoded
    assert digests(url) == fresh_digests(manifest, tokenizer, tmp_path, views=2, seed=1)


def test_added_samples_alone_are_encoded_and_order_makes_no_difference(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = small.ingest(raw)
    run(small.without(whole, "benign (1)", "malignant (1)"), url, tokenizer)
    assert counts(run(whole, url, tokenizer)) == (4, 8, 12)
    # What was there keeps its place; what is new comes last.
    assert open_store(url).samples["sample_id"].to_list()[-2:] == ["benign (1)", "malignant (1)"]
    assert digests(url) == fresh_digests(whole, tokenizer, tmp_path)
    assert len(open_store(url).receipt()["arrays"]) == 4


@pytest.mark.usefixtures("three_shards")
def test_store_grows_beyond_its_last_shard(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    small.write_busi(raw, ("benign (7)", "benign (8)", "benign (9)"))
    whole = small.ingest(raw)
    run(
        small.without(whole, "benign (7)", "benign (8)", "benign (9)", "benign (4)"), url, tokenizer
    )
    assert counts(run(whole, url, tokenizer)) == (8, 10, 18)
    assert digests(url) == fresh_digests(whole, tokenizer, tmp_path)


def test_sample_that_leaves_is_no_longer_live_and_may_come_back(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = small.ingest(raw)
    run(whole, url, tokenizer)
    before = digests(url)
    rest = small.without(whole, "benign (2)")
    assert counts(run(rest, url, tokenizer)) == (0, 10, 10)
    store = open_store(url)
    assert store.samples.filter(pl.col("split").is_null())["sample_id"].to_list() == ["benign (2)"]
    assert store.receipt()["samples"] == 5
    assert digests(url) == fresh_digests(rest, tokenizer, tmp_path)
    assert counts(run(whole, url, tokenizer)) == (0, 12, 12)
    assert digests(url) == before


@pytest.mark.usefixtures("three_shards")
def test_shard_whose_samples_have_all_left_is_not_missed(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = small.ingest(raw)
    run(whole, url, tokenizer, views=1)
    rest = small.without(whole, "benign (1)", "benign (2)")  # the first shard
    assert counts(run(rest, url, tokenizer, views=2)) == (4, 4, 8)
    assert digests(url) == fresh_digests(rest, tokenizer, tmp_path, views=2)


def test_another_split_encodes_nothing_and_changes_the_receipt(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    first, second = small.ingest(raw, seed=0), small.ingest(raw, seed=1)
    assert not first.frame["split"].equals(second.frame["split"])
    run(first, url, tokenizer)
    before = open_store(url).receipt()
    assert counts(run(second, url, tokenizer)) == (0, 12, 12)
    store = open_store(url)
    assert store.samples["split"].to_list() == second.frame["split"].to_list()
    assert store.receipt()["samples_digest"] != before["samples_digest"]
    assert store.receipt()["arrays"] == before["arrays"]


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


# --- damage


def chunk(url: str, name: str, view: int) -> Path:
    (found,) = (path for path in Path(url, name, "c", str(view)).rglob("*") if path.is_file())
    return found


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit], ids=["missing", "damaged"])
def test_damaged_shard_is_not_written_into_as_if_its_other_cells_were_there(
    raw: Path, url: str, tokenizer: Tokenizer, damage: Callable[[Path], None]
) -> None:
    run(small.ingest(raw), url, tokenizer)
    damage(chunk(url, "mask_mean", 1))
    small.edit_image(raw, "benign (3)")
    with pytest.raises(ArtefactError, match=r"mask_mean/c/1/0/0/0/0 is (missing|damaged)"):
        run(small.ingest(raw), url, tokenizer)


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit], ids=["missing", "damaged"])
def test_shard_without_keys_is_made_again_over_any_damage(
    raw: Path, url: str, tokenizer: Tokenizer, damage: Callable[[Path], None]
) -> None:
    run(small.ingest(raw), url, tokenizer)
    before = digests(url)
    for name in ("image_mean", "mask"):
        damage(chunk(url, name, 1))
    chunk(url, "key", 1).unlink()
    assert counts(run(small.ingest(raw), url, tokenizer)) == (6, 6, 12)
    assert digests(url) == before


def test_receipt_goes_before_the_first_cell_is_encoded_again(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    run(small.ingest(raw), url, tokenizer)
    chunk(url, "key", 1).unlink()
    with pytest.raises(KeyboardInterrupt):
        run(small.ingest(raw), url, tokenizer, progress=stop)
    assert open_store(url).receipt() is None


# --- the tokenizer under stress


class Stressed:
    """A tokenizer of which `encode` is another function; all else as it is."""

    def __init__(self, tokenizer: Tokenizer, encode: Callable[..., Any]) -> None:
        self.tokenizer = tokenizer
        self.encode = encode

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
    ],
    ids=["device", "host"],
)
def test_batch_is_halved_until_it_fits(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path, error: RuntimeError
) -> None:
    sizes: list[int] = []

    def encode_few(pixels: torch.Tensor, precision: str) -> Any:
        sizes.append(len(pixels) // 2)  # an image and a mask a cell
        if len(pixels) > 4:
            raise error
        return tokenizer.encode(pixels, precision)

    stressed: Any = Stressed(tokenizer, encode_few)
    assert counts(run(small.ingest(raw), url, stressed, batch_size=8)) == (12, 0, 12)
    # 8 asks for all six; the size that fits is kept.
    assert sizes == [6, 4, 2, 2, 2, 2, 2, 2]
    other = str(tmp_path / "whole.zarr")
    run(small.ingest(raw), other, tokenizer, batch_size=6)
    for name in ("image_mean", "image_std", "mask_mean", "mask"):
        for view in (0, 1):
            one, all_at_once = (open_store(u).read_shard(name, view, 0) for u in (url, other))
            np.testing.assert_allclose(
                one.astype(np.float32), all_at_once.astype(np.float32), rtol=2e-3, atol=2e-3
            )


def test_one_cell_too_many_for_memory_is_said(raw: Path, url: str, tokenizer: Tokenizer) -> None:
    def encode_none(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stressed: Any = Stressed(tokenizer, encode_none)
    with pytest.raises(UsageError, match="more than the memory of cpu") as caught:
        run(small.ingest(raw), url, stressed, batch_size=4)
    assert "--size" in caught.value.fix


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    def encode_none(*_: Any) -> Any:
        raise RuntimeError("expected scalar type Half")

    stressed: Any = Stressed(tokenizer, encode_none)
    with pytest.raises(RuntimeError, match="scalar type Half"):
        run(small.ingest(raw), url, stressed, batch_size=4)


def overflow_on_white(tokenizer: Tokenizer, precisions: set[str]) -> Any:
    """The tokenizer, but for white images in those precisions, which it encodes to infinity."""

    def encode_most(pixels: torch.Tensor, precision: str) -> Any:
        mean, std = tokenizer.encode(pixels, precision)
        white = (pixels > 0.99).flatten(1).all(dim=1)
        if precision in precisions:
            mean = torch.where(white[:, None, None, None], torch.inf, mean)
        return mean, std

    return Stressed(tokenizer, encode_most)


@pytest.fixture
def with_white(raw: Path) -> Manifest:
    with Image.open(small.image_path(raw, "benign (3)")) as image:
        white = Image.new("RGB", image.size, "white")
    white.save(small.image_path(raw, "benign (3)"))
    return small.ingest(raw)


def test_cell_that_overflows_in_half_precision_is_encoded_in_full(
    with_white: Manifest, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = {"views": 1, "batch_size": 4}
    run(with_white, url, overflow_on_white(tokenizer, {"bf16"}), precision="bf16", **settings)
    other = {p: str(tmp_path / f"{p}.zarr") for p in ("fp32", "bf16")}
    for precision, place in other.items():
        run(with_white, place, tokenizer, precision=precision, **settings)
    got = open_store(url).read_shard("image_mean", 0, 0)
    full, half = (open_store(u).read_shard("image_mean", 0, 0) for u in other.values())
    # Alone in its batch the second time: equal to the last bit but one of float16.
    np.testing.assert_allclose(got[2], full[2], rtol=2e-3, atol=1e-4)
    assert (got[2] != half[2]).any()
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(got[others], half[others])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cell_that_is_not_finite_even_in_full_precision_is_named(
    with_white: Manifest, url: str, tokenizer: Tokenizer, precision: str
) -> None:
    stressed = overflow_on_white(tokenizer, {"fp32", "bf16"})
    with pytest.raises(InputError, match="1 samples encode to latents that are not fin") as caught:
        run(with_white, url, stressed, views=1, precision=precision)
    assert "benign (3)" in caught.value.message
    assert "benign (2)" not in caught.value.message
    assert open_store(url).receipt() is None
    assert not open_store(url).present()[0, 2]


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
