"""pipeline.store.lock: one writer at a time, and none that a dead one keeps out for ever."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ArtefactError
from pipeline.store import lock
from pipeline.store.lock import Partition, partition_lock, shared_lock, writer_lock


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "busi.zarr")


def write_lock(url: str, **owner: Any) -> Path:
    path = Path(f"{url}.lock")
    now = time.time()
    known = {"what": "encode", "pid": os.getpid(), "host": socket.gethostname()}
    path.write_text(json.dumps({**known, "since": now - 90, "alive": now, **owner}))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_lock_lies_beside_the_store_while_it_is_held(url: str) -> None:
    with writer_lock(url):
        owner = json.loads(Path(f"{url}.lock").read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())
    assert not list(Path(url).parent.iterdir())


def test_second_writer_is_told_who_holds_it_and_for_how_long(url: str) -> None:
    path = write_lock(url)
    told = f"held by encode, process {os.getpid()} on {socket.gethostname()}, for 9[0-5] s"
    with pytest.raises(ArtefactError, match=told), writer_lock(url):
        pass
    assert path.exists()


def test_lock_of_a_process_that_has_died_is_taken_over(url: str) -> None:
    write_lock(url, pid=dead_pid())
    with writer_lock(url):
        assert json.loads(Path(f"{url}.lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(("silent_s", "taken_over"), [(590, False), (610, True)])
def test_lock_of_another_machine_is_taken_over_when_it_shows_no_life(
    url: str, silent_s: float, taken_over: bool
) -> None:
    write_lock(url, host="elsewhere", pid=1, alive=time.time() - silent_s)
    if taken_over:
        with writer_lock(url):
            pass
        return
    with pytest.raises(ArtefactError, match="on elsewhere"), writer_lock(url):
        pass


def test_lock_without_content_is_that_of_a_writer_who_died_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_POLL_S", 0.01)
    Path(f"{url}.lock").touch()
    with writer_lock(url):
        pass


def test_owner_shows_signs_of_life(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with writer_lock(url):
        first = json.loads(Path(f"{url}.lock").read_text())["alive"]
        deadline = time.monotonic() + 20
        while json.loads(Path(f"{url}.lock").read_text() or "{}").get("alive", first) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_lock_goes_when_the_work_fails(url: str) -> None:
    with pytest.raises(ZeroDivisionError), writer_lock(url):
        _ = 1 / 0
    assert not Path(f"{url}.lock").exists()


def test_partitions_hold_a_store_together_and_keep_a_whole_writer_out(url: str) -> None:
    with partition_lock(url, Partition(1, 2)), partition_lock(url, Partition(2, 2)):
        with pytest.raises(ArtefactError, match="held by partition 1/2"), writer_lock(url):
            pass
        assert not Path(f"{url}.lock").exists()


def test_partition_is_refused_twice_and_beside_another_count(url: str) -> None:
    with partition_lock(url, Partition(1, 2)):
        for other in (Partition(1, 2), Partition(2, 3)):
            with (
                pytest.raises(ArtefactError, match="held by partition 1/2"),
                partition_lock(url, other),
            ):
                pass


def test_partition_is_refused_beside_a_writer_of_the_whole(url: str) -> None:
    with (
        writer_lock(url),
        pytest.raises(ArtefactError, match="held by encode"),
        shared_lock(url, Partition(1, 2)),
    ):
        pass


def test_partition_waits_for_another_that_prepares(url: str) -> None:
    order = []

    def second() -> None:
        with shared_lock(url, Partition(2, 2)):
            order.append("second")

    with shared_lock(url, Partition(1, 2)):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_partition_that_is_taken_is_said_while_others_would_be_waited_for(url: str) -> None:
    with (
        partition_lock(url, Partition(1, 2)),
        pytest.raises(ArtefactError, match="held by partition 1/2"),
        shared_lock(url, Partition(1, 2)),
        partition_lock(url, Partition(1, 2)),
    ):
        pass


def test_names_with_special_characters_are_only_names(tmp_path: Path) -> None:
    url = str(tmp_path / "a[b]*?.zarr")
    with (
        partition_lock(url, Partition(1, 2)),
        pytest.raises(ArtefactError, match="held by partition"),
        writer_lock(url),
    ):
        pass
