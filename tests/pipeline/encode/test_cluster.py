"""encode --scheduler: blocks on the workers of a Dask cluster, some of which die."""

import asyncio
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small
import torch
from dask_cluster import dask_cluster, processes
from distributed import Client, KilledWorker, LocalCluster
from distributed.comm.tcp import TCP
from encoded import run

from pipeline.encode.cluster import connected, encode_cells
from pipeline.encode.worker import Encoding, encode_block
from pipeline.errors import ArtefactError, InputError, UsageError
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store.lock import Partition
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer

VIEWS = 2
NAMES = tuple(f"benign ({i + 1})" for i in range(20))
CELLS = VIEWS * len(NAMES)

pytestmark = pytest.mark.usefixtures("two_a_shard")


@pytest.fixture(scope="module")
def two_a_shard(small_store: str) -> Iterator[None]:
    """Ten blocks; and one thread, as each worker has, for threads decide the last bit.

    The small store, which all tests share, is there before the shards change.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Twenty samples; never changed."""
    return small.ingest(small.write_busi(tmp_path_factory.mktemp("twenty"), NAMES))


@pytest.fixture(scope="module")
def here() -> Iterator[str]:
    """The address of a cluster in this process: a worker of one thread."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        memory_limit=None,
        silence_logs="CRITICAL",
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def receipt(
    two_a_shard: None,
    twenty: Manifest,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """That of one process."""
    url = str(tmp_path_factory.mktemp("one") / "one.zarr")
    run(twenty, url, tokenizer)
    found = open_store(url).receipt()
    assert found
    return found


def test_processes_on_this_machine_end_with_the_receipt_of_one_and_leave_no_trace_in_it(
    twenty: Manifest, url: str, tokenizer: Tokenizer, receipt: dict[str, Any]
) -> None:
    before = dict(os.environ)
    calls: list[tuple[int, int]] = []
    report = run(
        twenty, url, tokenizer, scheduler="local:2", progress=lambda *done: calls.append(done)
    )
    assert (report.encoded, report.present, report.complete) == (CELLS, CELLS, True)
    assert open_store(url).receipt() == receipt
    assert calls == [(done, CELLS) for done in range(4, CELLS + 1, 4)]
    assert dict(os.environ) == before


def test_four_shares_end_with_the_receipt_of_one_process(
    twenty: Manifest, url: str, tokenizer: Tokenizer, receipt: dict[str, Any]
) -> None:
    done = [run(twenty, url, tokenizer, partition=Partition(i, 4)).encoded for i in (2, 4, 1, 3)]
    assert done == [12, 8, 12, 8]
    assert open_store(url).receipt() == receipt


def test_whatever_is_killed_nothing_is_lost_and_the_receipt_is_that_of_one_process(
    twenty: Manifest,
    url: str,
    tokenizer: Tokenizer,
    receipt: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing first; then three workers, then the scheduler; then the same command again."""
    monkeypatch.setattr("pipeline.encode.cluster.WAIT_S", 2)
    killed: set[int] = set()
    with dask_cluster(tmp_path, workers=3) as cluster:
        undisturbed = str(tmp_path / "undisturbed.zarr")
        run(twenty, undisturbed, tokenizer, scheduler=cluster.address)
        assert open_store(undisturbed).receipt() == receipt
        assert cluster.encoded() == CELLS
        assert len(processes(cluster)) == 3

        def kill(_done: int, _total: int) -> None:
            if len(killed) == 3:
                cluster.kill()
            elif cluster.busy() not in killed:
                killed.add(cluster.busy())
                os.kill(cluster.busy(), signal.SIGKILL)

        with pytest.raises(ArtefactError, match="has gone") as caught:
            run(twenty, url, tokenizer, scheduler=cluster.address, progress=kill)
        assert "run the same command again" in caught.value.fix
        kept = int(open_store(url).present().sum())
        cluster.start()
        report = run(twenty, url, tokenizer, scheduler=cluster.address)
        assert len(processes(cluster)) > 3
        twice = cluster.encoded() - 2 * CELLS
        print(f"{twice} of {CELLS} cells encoded twice")  # noqa: T201  shown by pytest -s
    assert len(killed) == 3
    assert report.reused == kept > 0
    assert open_store(url).receipt() == receipt
    assert verify(open_store(url)) == (CELLS, [])
    # Each of the three, and those at work when the scheduler went, had one shard in hand.
    assert 0 <= twice <= 2 * (3 + 3)


def test_a_bad_image_is_named_and_all_others_are_encoded(
    here: str, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    raw = small.write_busi(tmp_path / "raw", NAMES)
    manifest = small.ingest(raw)
    small.image_path(raw, "benign (7)").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of the samples .*: benign \(7\): .* changed since"):
        run(manifest, url, tokenizer, scheduler=here)
    store = open_store(url)
    absent = [
        name
        for name, there in zip(store.samples["sample_id"], store.present()[0], strict=True)
        if not there
    ]
    assert absent == ["benign (7)"]
    assert store.present()[1].sum() == len(NAMES) - 1
    assert store.receipt() is None


def test_a_worker_has_two_blocks_at_most(
    here: str,
    twenty: Manifest,
    url: str,
    tokenizer: Tokenizer,
    receipt: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: list[Any] = []
    most = 0
    submit = Client.submit

    def submitting(client: Client, *task: Any, **options: Any) -> Any:
        nonlocal most
        future = submit(client, *task, **options)
        alive[:] = [other for other in alive if not other.done()] + [future]
        most = max(most, len(alive))
        return future

    monkeypatch.setattr(Client, "submit", submitting)
    run(twenty, url, tokenizer, scheduler=here)
    assert open_store(url).receipt() == receipt
    assert most == 2


def nothing_to_encode(_name: str, _block: int) -> list[str]:
    return []


def test_a_task_is_a_hundred_bytes_and_what_is_sent_does_not_grow_with_the_blocks(
    small_store: str, kl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10⁵ blocks the first and the last hundred lack cells; a worker over TCP encodes them."""
    todo = np.zeros((1, 100_000), np.bool_)
    todo[:, :100] = todo[:, -100:] = True
    store: Any = SimpleNamespace(url=small_store, shard_samples=1)
    tasks: list[int] = []
    held: list[int] = []
    sent: list[int] = []
    submit, write = Client.submit, TCP.write

    async def writing(comm: TCP, *message: Any, **options: Any) -> int:
        sent.append(await write(comm, *message, **options))
        return sent[-1]

    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        memory_limit=None,
        silence_logs="CRITICAL",
    ) as cluster:

        def submitting(client: Client, *task: Any, **options: Any) -> Any:
            tasks.append(len(pickle.dumps((task, options["key"]))) - 2 * len(small_store))
            held.append(len(cluster.scheduler.tasks))
            return submit(client, *task, **options)

        monkeypatch.setattr(Client, "submit", submitting)
        monkeypatch.setattr(TCP, "write", writing)
        monkeypatch.setattr("pipeline.encode.cluster.encode_block", nothing_to_encode)
        with connected(cluster.scheduler_address) as client:
            lock: Any = SimpleNamespace(require_held=lambda: None)
            encode_cells(client, store, todo, str(kl_folder), "cpu", None, lock, None)
    assert len(tasks) == 200
    assert max(tasks) < 200  # and twice the URL
    assert max(held) <= 2
    a_block = sum(sent) / len(tasks)  # there and back, by whoever sends, and greetings
    print(f"{max(tasks)} bytes a task, {a_block:.0f} bytes sent for a block")  # noqa: T201
    assert 2 * 64 * a_block < 1_000_000  # under way at a time, on 64 workers


def test_a_block_that_ends_its_workers_is_named_and_all_others_are_encoded(
    twenty: Manifest,
    url: str,
    tokenizer: Tokenizer,
    here: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if block 3 needed more memory than there is."""
    log = tmp_path / "tried"

    def dying(name: str, block: int) -> Any:
        with log.open("a") as tried:
            tried.write(f"{block} ")
        if block == 3:
            raise KilledWorker("block 3", SimpleNamespace(address="w"), 1)
        return encode_block(name, block)

    monkeypatch.setattr("pipeline.encode.cluster.encode_block", dying)
    with pytest.raises(
        InputError, match=r"benign \(15\) … benign \(16\) \(2 samples\): the process"
    ):
        run(twenty, url, tokenizer, scheduler=here)
    tried = log.read_text().split()
    assert sorted(tried[:-1]) == sorted(str(block) for block in range(10))
    assert tried[-1] == "3"
    assert int(open_store(url).present().sum()) == CELLS - 4


def test_no_worker_is_said_at_once_and_nothing_is_touched(
    twenty: Manifest, url: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.encode.cluster.WAIT_S", 0.2)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(ArtefactError, match=r"has had no worker for 0\.2 s"),
    ):
        run(twenty, url, tokenizer, scheduler=cluster.scheduler_address)
    assert not Path(url).exists()


def test_no_scheduler_is_said_at_once(
    twenty: Manifest, url: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.encode.cluster.WAIT_S", 0.2)
    with pytest.raises(ArtefactError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run(twenty, url, tokenizer, scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("words", ["local:0", "local:two", "localhost"])
def test_other_words_are_refused(
    twenty: Manifest, url: str, tokenizer: Tokenizer, words: str
) -> None:
    with pytest.raises(UsageError, match="is no cluster"):
        run(twenty, url, tokenizer, scheduler=words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_workers_without_the_gpu_that_was_asked_for_are_named(
    here: str, twenty: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(ArtefactError, match=r"1 of 1 workers cannot encode: .*device 'cuda'"):
        run(twenty, url, tokenizer, scheduler=here, worker_device="cuda")


@pytest.mark.parametrize(
    ("gone", "words"), [("store", "no latent store at"), ("images", "it sees no images")]
)
def test_a_worker_that_does_not_see_everything_says_what(
    store_copy: Path, tmp_path: Path, kl_folder: Path, gone: str, words: str
) -> None:
    if gone == "images":
        open_store(str(store_copy), "r+").group.attrs["root"] = str(tmp_path / "gone")
    place = store_copy if gone == "images" else tmp_path / "elsewhere"
    encoding = Encoding(str(place), str(kl_folder), "cpu", None)
    worker: Any = SimpleNamespace(name="w", state=SimpleNamespace(nthreads=1))
    asyncio.run(encoding.setup(worker))
    assert words in str(encoding.fault)
