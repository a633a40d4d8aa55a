"""A store on S3: the same bytes and the same guarantees, against a server that the test starts."""

import json
import time
from pathlib import Path

import fsspec
import pytest
import small
from object_store import Server

from lmm.latents import load_latents
from pipeline.encode import encode
from pipeline.errors import ArtefactError
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store.lock import Partition, writer_lock
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def bucket(s3: Server) -> str:
    return s3.bucket


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return small.ingest(small.write_busi(tmp_path_factory.mktemp("remote") / "raw"))


def run(manifest: Manifest, url: str, tokenizer: Tokenizer, **more: object) -> tuple[int, int]:
    report = encode(manifest, url, tokenizer, **{"views": 2, "size": small.SIZE_PX, **more})
    return report.encoded, report.reused


def test_store_on_s3_equals_the_one_on_disk(
    bucket: str, manifest: Manifest, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    url, local = f"{bucket}/equal.zarr", str(tmp_path / "local.zarr")
    assert run(manifest, url, tokenizer) == (12, 0)
    assert run(manifest, url, tokenizer) == (0, 12)
    run(manifest, local, tokenizer)
    assert open_store(url).receipt() == open_store(local).receipt()
    assert verify(open_store(url)) == (12, [])
    split = manifest.frame["split"][0]
    far, near = load_latents(open_store(url), split), load_latents(open_store(local), split)
    assert far.image_mean.equal(near.image_mean)
    assert far.sample_ids == near.sample_ids


def test_stopped_encode_goes_on_and_is_refused_to_readers_meanwhile(
    bucket: str, manifest: Manifest, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    url = f"{bucket}/stopped.zarr"

    def stop(done: int, _total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(manifest, url, tokenizer, progress=stop)
    present = int(open_store(url).present().sum())
    assert 0 < present < 12
    with pytest.raises(ArtefactError, match=f"{12 - present} of 12 cells are missing"):
        open_store(url).require_complete()
    assert run(manifest, url, tokenizer) == (12 - present, present)
    assert verify(open_store(url)) == (12, [])


def test_damaged_and_missing_objects_are_named_and_mended(
    bucket: str, manifest: Manifest, tokenizer: Tokenizer
) -> None:
    url = f"{bucket}/damaged.zarr"
    run(manifest, url, tokenizer)
    fs, root = fsspec.core.url_to_fs(url)
    damaged, missing = f"{root}/mask/c/0/0/0/0", f"{root}/image_mean/c/1/0/0/0/0"
    fs.pipe_file(damaged, fs.cat_file(damaged)[:-3])
    fs.rm_file(missing)
    found = {fault.file: fault.kind for fault in verify(open_store(url))[1]}
    assert found == {"mask/c/0/0/0/0": "damaged", "image_mean/c/1/0/0/0/0": "missing"}
    assert run(manifest, url, tokenizer, repair=True) == (12, 0)
    assert verify(open_store(url)) == (12, [])


def test_second_writer_is_told_and_a_dead_one_makes_way(
    bucket: str, manifest: Manifest, tokenizer: Tokenizer
) -> None:
    url = f"{bucket}/locked.zarr"
    with writer_lock(url), pytest.raises(ArtefactError, match="held by encode") as caught:
        run(manifest, url, tokenizer)
    assert caught.value.fix.endswith(f"remove {url}.lock")
    fs, root = fsspec.core.url_to_fs(url)
    assert not fs.exists(f"{root}.lock")
    dead = b'{"what": "encode", "pid": 1, "host": "elsewhere", "since": 1.0, "alive": 1.0}'
    fs.pipe_file(f"{root}.lock", dead)
    assert run(manifest, url, tokenizer) == (12, 0)


def test_owner_of_a_lease_that_was_taken_over_writes_nothing_more_and_leaves_it(
    bucket: str, manifest: Manifest, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped for eleven minutes after its first shard, while another takes the store."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    url, clock, slept = f"{bucket}/slept.zarr", time.time, [0.0]
    monkeypatch.setattr("pipeline.store.lease.time.time", lambda: clock() + slept[0])
    others = []

    def sleep(done: int, _total: int) -> None:
        if done == 2:
            slept[0] = 660.0
            others.append(writer_lock(url, "prune"))
            others[0].__enter__()

    with pytest.raises(ArtefactError, match="lost the lock"):
        run(manifest, url, tokenizer, progress=sleep)
    assert int(open_store(url).present().sum()) == 2
    fs, root = fsspec.core.url_to_fs(url)
    assert json.loads(fs.cat_file(f"{root}.lock"))["what"] == "prune"
    others[0].__exit__(None, None, None)
    assert not fs.exists(f"{root}.lock")
    assert run(manifest, url, tokenizer) == (10, 2)


def test_lease_whose_creation_was_not_answered_is_its_owners(
    s3: Server, bucket: str, manifest: Manifest, tokenizer: Tokenizer
) -> None:
    url = f"{bucket}/unheard.zarr"
    with s3.failing(lambda how, path: how == "PUT" and path.endswith(".lock") and "unheard"):
        assert run(manifest, url, tokenizer) == (12, 0)
    assert s3.failed == {"unheard": 1}
    assert not fsspec.filesystem("s3").exists(f"{url}.lock")


def test_partitions_fill_one_store(
    bucket: str, manifest: Manifest, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    url = f"{bucket}/shared.zarr"
    assert run(manifest, url, tokenizer, partition=Partition(2, 2)) == (4, 0)
    assert open_store(url).receipt() is None
    assert run(manifest, url, tokenizer, partition=Partition(1, 2)) == (8, 4)
    assert verify(open_store(url)) == (12, [])
