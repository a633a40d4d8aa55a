"""Whatever killed an encode, and whatever came before: the next ends with the right store."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import small
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.encode import encode
from pipeline.errors import ArtefactError
from pipeline.manifest import Manifest, write_manifest
from pipeline.store import open_store, store_exists
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer

# GMS_LMM_KILLS=200 GMS_LMM_EXAMPLES=300 for a long night.
KILLS = int(os.environ.get("GMS_LMM_KILLS", "12"))
EXAMPLES = int(os.environ.get("GMS_LMM_EXAMPLES", "10"))


def digests(url: str) -> dict[str, str]:
    return dict(open_store(url).receipt()["arrays"])


def run(manifest: Manifest, url: str, tokenizer: Tokenizer, views: int = 2, **more: Any) -> int:
    return encode(manifest, url, tokenizer, views=views, size=small.SIZE_PX, **more).encoded


def test_killed_at_random_moments_it_ends_with_the_same_store(
    tmp_path: Path, kl_folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty-two images in two views, shards of four; every attempt but the last is killed."""
    names = tuple(f"benign ({i + 1})" for i in range(32))
    manifest = small.ingest(small.write_busi(tmp_path / "raw", names))
    write_manifest(manifest, tmp_path / "m.parquet")
    done = subprocess.run(
        [
            sys.executable,
            Path(__file__).parents[2] / "support" / "crash_loop.py",
            tmp_path / "m.parquet",
            kl_folder,
            tmp_path,
            *(str(KILLS), "0"),
        ],
        cwd=Path(__file__).parents[3],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[3]),
            # Another number of threads sums in another order, and the last bit shows it.
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    print(counted)  # noqa: T201  shown by pytest -s: how many cells were encoded twice
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 4)
    run(manifest, str(tmp_path / "reference.zarr"), tokenizer)
    reference = digests(str(tmp_path / "reference.zarr"))
    assert counted["kills"] >= KILLS
    for number in range(counted["stores"]):
        store = open_store(str(tmp_path / f"{number}.zarr"))
        assert store.receipt()["arrays"] == reference
        assert verify(store) == (64, [])
    # A kill costs at most the one shard that was being encoded or written.
    assert counted["encoded"] - 64 * counted["stores"] <= 4 * counted["kills"]


class Killed(BaseException):
    """As SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize(
    "moment",
    [
        "pipeline.encode.job.decode_sample",
        "pipeline.encode.job.CellEncoder.__call__",
        "pipeline.store.shards.cell_checksums",
        "pipeline.store.finish.write_receipt",
        "pipeline.store.finish.array_digests",
    ],
)
def test_stopped_between_any_two_steps_it_goes_on(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    url = str(tmp_path / "store.zarr")

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(moment, kill)
        with pytest.raises(Killed):
            run(manifest, url, tokenizer)
    with pytest.raises(ArtefactError, match="is not finished"):
        open_store(url).require_complete()
    run(manifest, url, tokenizer)
    run(manifest, str(tmp_path / "fresh.zarr"), tokenizer)
    assert digests(url) == digests(str(tmp_path / "fresh.zarr"))
    assert verify(open_store(url)) == (12, [])


def test_killed_before_any_file_takes_its_place_it_goes_on(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encode, then with a sample more: killed before the first file, the second, … the last."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    few = small.ingest(small.write_busi(tmp_path / "few", NAMES[:2]))
    manifest = small.ingest(small.write_busi(tmp_path / "raw", NAMES[:3]))
    run(manifest, str(tmp_path / "fresh.zarr"), tokenizer)
    reference = digests(str(tmp_path / "fresh.zarr"))
    replace = Path.replace

    for kill_at in itertools.count():
        url, files = str(tmp_path / f"{kill_at}.zarr"), itertools.count()

        def fatal(source: Path, target: Path, files: Any = files, at: int = kill_at) -> None:
            if next(files) >= at:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Path, "replace", fatal)
            run(few, url, tokenizer)
            run(manifest, url, tokenizer)
        run(manifest, url, tokenizer)
        assert digests(url) == reference
        assert verify(open_store(url)) == (6, [])
        if next(files) <= kill_at:  # it was never killed
            break
    assert kill_at > 20


# --- any history


NAMES = tuple(f"benign ({i})" for i in range(1, 8))
ACTIONS = st.one_of(
    st.tuples(
        st.sampled_from(["add", "remove", "image", "mask", "rename"]), st.sampled_from(NAMES)
    ),
    st.tuples(st.just("views"), st.integers(1, 3)),
    st.tuples(st.just("kill"), st.integers(0, 25)),
    st.tuples(st.just("encode"), st.none()),
)


class History:
    """A folder of images that people change, and the store they keep bringing up to date."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.root = small.write_busi(folder / "raw", ("benign (1)", "benign (2)", "benign (9)"))
        self.url = str(folder / "store.zarr")
        self.tokenizer = tokenizer
        self.views = 2

    def act(self, action: str, value: Any) -> None:
        if action == "views":
            self.views = value
        elif action == "encode":
            run(small.ingest(self.root), self.url, self.tokenizer, self.views)
        elif action == "kill":
            self.kill(value)
        else:
            self.change(action, small.image_path(self.root, value))

    def change(self, action: str, image: Path) -> None:
        masks = list(image.parent.glob(f"{image.stem}_mask*.png"))
        if action == "add" or not image.exists():
            small.write_busi(self.root, (image.stem,))
        elif action == "remove":
            for path in (image, *masks):
                path.unlink()
        elif action == "image":
            small.edit_image(self.root, image.stem)
        elif action == "mask":
            small.turn_mask(masks[0])
        elif action == "rename":
            for path in (image, *masks):
                path.rename(path.with_name(path.name.replace("(", "(1")))

    def kill(self, writes: int) -> None:
        """Encode, and die at the n-th write into any array."""
        write, left = zarr.Array.__setitem__, [writes]

        def fatal(array: Any, place: Any, value: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            write(array, place, value)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zarr.Array, "__setitem__", fatal)
            try:
                self.act("encode", None)
            except Killed:
                if store_exists(self.url):
                    assert open_store(self.url).receipt() is None


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(history=st.lists(ACTIONS, min_size=2, max_size=10))
def test_any_history_ends_with_the_store_that_a_fresh_encode_gives(
    tokenizer: Tokenizer, history: list[tuple[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
        grown = History(Path(folder), tokenizer)
        for action, value in history:
            grown.act(action, value)
        grown.act("encode", None)
        fresh = str(Path(folder) / "fresh.zarr")
        manifest = small.ingest(grown.root)
        run(manifest, fresh, tokenizer, grown.views)
        assert digests(grown.url) == digests(fresh)
        assert verify(open_store(grown.url))[1] == []
        assert run(manifest, grown.url, tokenizer, grown.views) == 0


# --- no room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_full_disk_is_said_and_what_was_finished_is_kept(
    tmp_path: Path, small_disk: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    url = str(small_disk / "store.zarr")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_850_000))
    with pytest.raises(ArtefactError, match="no room left") as caught:
        run(manifest, url, tokenizer, views=8)
    assert "finished shards are kept" in caught.value.fix
    kept = int(open_store(url).present().sum())
    assert 0 < kept < 48
    assert {fault.kind for fault in verify(open_store(url))[1]} == {"unfinished"}
    ballast.unlink()
    assert run(manifest, url, tokenizer, views=8) == 48 - kept
    assert verify(open_store(url)) == (48, [])


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zarr.Array, "__setitem__", fail)
    with pytest.raises(OSError, match="Input/output error"):
        run(manifest, str(tmp_path / "store.zarr"), tokenizer)
