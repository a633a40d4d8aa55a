"""encode --partition: shares of one store by several writers, none sharing a shard."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from pipeline.encode.job import _share_of, encode
from pipeline.errors import ArtefactError
from pipeline.store import open_store
from pipeline.store.lock import Partition, partition_lock
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six samples, two a shard."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    return small.write_busi(tmp_path / "raw")


def run(raw: Path, url: str, tokenizer: Tokenizer, **more: Any) -> tuple[int, bool]:
    report = encode(
        small.ingest(raw), url, tokenizer, **{"views": 2, "size": small.SIZE_PX, **more}
    )
    return report.encoded, report.complete


@pytest.mark.parametrize(("blocks", "count"), [(3, 4), (1, 3), (11, 5)])
def test_every_block_is_in_exactly_one_share_and_shares_are_even(blocks: int, count: int) -> None:
    shares = [_share_of(Partition(i + 1, count), blocks) for i in range(count)]
    assert np.sum(shares, axis=0).tolist() == [1] * blocks
    sizes = [int(share.sum()) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_blocks_that_are_added_fall_to_all_shares() -> None:
    """180 samples after 640, sixty-four a block: three blocks more than ten."""
    added = [_share_of(Partition(i + 1, 4), 13)[10:].sum() for i in range(4)]
    assert sorted(added) == [0, 1, 1, 1]


def test_partitions_one_by_one_end_with_the_store_of_one_writer(
    raw: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    url, whole = str(tmp_path / "shared.zarr"), str(tmp_path / "whole.zarr")
    done = [run(raw, url, tokenizer, partition=Partition(i, 3)) for i in (3, 1, 2)]
    assert done == [(4, False), (4, False), (4, True)]
    run(raw, whole, tokenizer)
    assert open_store(url).receipt() == open_store(whole).receipt()


def test_partitions_bring_a_store_that_is_there_to_other_settings(
    raw: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    url, whole = str(tmp_path / "shared.zarr"), str(tmp_path / "whole.zarr")
    run(raw, url, tokenizer)
    done = [run(raw, url, tokenizer, seed=1, views=3, partition=Partition(i, 2)) for i in (1, 2)]
    assert done[-1][1]
    run(raw, whole, tokenizer, seed=1, views=3)
    assert open_store(url).receipt() == open_store(whole).receipt()


def test_partitions_at_once_end_with_the_store_of_one_writer(
    raw: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    url = str(tmp_path / "shared.zarr")
    results: dict[int, tuple[int, bool]] = {}

    def work(number: int) -> None:
        results[number] = run(raw, url, tokenizer, partition=Partition(number, 3), views=4)

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sum(encoded for encoded, _ in results.values()) == 24
    assert any(complete for _, complete in results.values())
    assert verify(open_store(url)) == (24, [])
    assert not list(tmp_path.glob("*.lock"))


def test_partition_with_other_settings_than_those_at_work_is_refused(
    raw: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    url = str(tmp_path / "shared.zarr")
    run(raw, url, tokenizer, partition=Partition(1, 2))
    with (
        partition_lock(url, Partition(1, 2)),
        pytest.raises(ArtefactError, match="by partitions with another manifest or other settings"),
    ):
        run(raw, url, tokenizer, partition=Partition(2, 2), views=3)
    assert open_store(url).views == 2


DIES = """
import os, signal, sys
from pipeline.store.lock import Partition, partition_lock

with partition_lock(sys.argv[1], Partition(2, 2)):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_lock_of_a_partition_that_died_does_not_stay_beside_the_finished_store(
    raw: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    url = str(tmp_path / "shared.zarr")
    run(raw, url, tokenizer, partition=Partition(2, 2))

    def die_beside(_done: int, _total: int) -> None:
        """The other has encoded all its cells, and dies before it looks whether it was the last."""
        if not Path(f"{url}.2-of-2.lock").exists():
            subprocess.run([sys.executable, "-c", DIES, url], cwd=Path(__file__).parents[3])
        assert Path(f"{url}.2-of-2.lock").exists()

    run(raw, url, tokenizer, partition=Partition(1, 2), progress=die_beside)
    assert open_store(url).receipt() is not None
    assert not list(tmp_path.glob("*.lock"))
