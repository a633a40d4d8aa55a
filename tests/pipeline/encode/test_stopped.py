"""An encode that was stopped or finds damage goes on to the same store; no key vouches falsely."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
import zarr
from encoded import Stressed, counts, digests, files, fresh_digests, run

from pipeline.errors import ArtefactError, UsageError
from pipeline.manifest import write_manifest
from pipeline.store import open_store
from pipeline.store.lock import writer_lock
from pipeline.tokenizer import Tokenizer

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


@pytest.mark.usefixtures("three_shards")
def test_writer_whose_lock_was_taken_meanwhile_writes_no_further_shard(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    """As after SIGSTOP or a closed lid, on a disk where someone has removed the lock."""
    others = []

    def take_over(done: int, _total: int) -> None:
        if done == 4:
            Path(f"{url}.lock").unlink()
            others.append(writer_lock(url, "prune"))
            others[0].__enter__()

    with pytest.raises(ArtefactError, match="lost the lock") as caught:
        run(small.ingest(raw), url, tokenizer, progress=take_over)
    assert caught.value.exit_code == 4
    assert int(open_store(url).present().sum()) == 4
    assert open_store(url).receipt() is None
    assert Path(f"{url}.lock").exists()
    others[0].__exit__(None, None, None)
    assert counts(run(small.ingest(raw), url, tokenizer)) == (8, 4, 12)


def test_folder_with_other_files_is_refused(raw: Path, tokenizer: Tokenizer) -> None:
    before = sorted(raw.rglob("*"))
    with pytest.raises(UsageError, match="is not a latent store") as caught:
        run(small.ingest(raw), str(raw), tokenizer)
    assert "does not exist yet" in caught.value.fix
    assert sorted(raw.rglob("*")) == before


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
