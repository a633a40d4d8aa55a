"""pipeline.store.lock on a disk: one writer at a time, and no dead one keeps another out."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import ArtefactError
from pipeline.store.lock import (
    Partition,
    partition_lock,
    shared_lock,
    sweep_locks,
    sweep_partitions,
    writer_lock,
)

HOLD = """
import sys, time
from pipeline.store.lock import Partition, partition_lock, writer_lock

url, number, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with partition_lock(url, Partition(number, count)) if number else writer_lock(url):
    print("held", flush=True)
    time.sleep(600)
"""

Hold = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "busi.zarr")


@pytest.fixture
def hold(url: str) -> Iterator[Hold]:
    """Let another process hold the store, or one partition of it."""
    started: list[subprocess.Popen[str]] = []

    def start(number: int = 0, count: int = 0) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLD, url, str(number), str(count)]
        root = Path(__file__).parents[3]
        process = subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_lock_lies_beside_the_store_while_it_is_held(url: str) -> None:
    with writer_lock(url):
        owner = json.loads(Path(f"{url}.lock").read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())
    assert not list(Path(url).parent.iterdir())


def test_second_writer_is_told_who_holds_it_for_how_long_and_which_file_is_the_lock(
    url: str, hold: Hold
) -> None:
    process = hold()
    with pytest.raises(ArtefactError) as caught, writer_lock(url):
        pass
    who = f"{url} is held by encode, process {process.pid} on {socket.gethostname()}, for "
    assert caught.value.message.startswith(who)
    assert 0 <= int(caught.value.message.removeprefix(who).removesuffix(" s")) < 60
    assert caught.value.fix == f"wait for it, or end it; if it is long gone, remove {url}.lock"
    assert caught.value.exit_code == 4
    assert json.loads(Path(f"{url}.lock").read_text())["pid"] == process.pid


def test_partitions_at_work_are_told_with_their_lock_and_never_the_store_as_what_to_remove(
    url: str, hold: Hold
) -> None:
    process = hold(2, 4)
    with pytest.raises(ArtefactError) as caught, writer_lock(url):
        pass
    assert f"{url} is held by partition 2/4, process {process.pid} on" in caught.value.message
    assert caught.value.fix.endswith(f"remove {url}.2-of-4.lock")
    with pytest.raises(ArtefactError) as caught, partition_lock(url, Partition(1, 3)):
        pass
    assert caught.value.fix.endswith(f"remove {url}.2-of-4.lock")


def test_lock_of_a_killed_process_is_free_at_once(url: str, hold: Hold) -> None:
    process = hold()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Path(f"{url}.lock").exists()
    with writer_lock(url):
        assert json.loads(Path(f"{url}.lock").read_text())["pid"] == os.getpid()
    assert not Path(f"{url}.lock").exists()


def test_number_of_a_living_process_in_the_file_holds_nothing(url: str) -> None:
    """Numbers are used again: that one is alive does not make it the one that wrote here."""
    owner = {"what": "encode", "pid": os.getpid(), "host": socket.gethostname(), "since": 0.0}
    Path(f"{url}.lock").write_text(json.dumps(owner))
    with writer_lock(url):
        pass


def test_stopped_process_holds_its_lock(url: str, hold: Hold) -> None:
    process = hold()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(ArtefactError, match=f"process {process.pid}"), writer_lock(url):
        pass


def test_owner_whose_lock_was_removed_and_taken_gives_up_and_leaves_it(url: str) -> None:
    with writer_lock(url) as first:
        first.require_held()
        Path(f"{url}.lock").unlink()
        with pytest.raises(ArtefactError, match=rf"lost the lock {url}\.lock"):
            first.require_held()
        second = writer_lock(url, "prune")
        second.__enter__()
        with pytest.raises(ArtefactError, match="lost the lock"):
            first.require_held()
    assert json.loads(Path(f"{url}.lock").read_text())["what"] == "prune"
    second.__exit__(None, None, None)


def test_file_system_without_locks_is_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(ArtefactError, match="has no locks") as caught, writer_lock(url):
        pass
    assert "local disk" in caught.value.fix


def test_lock_goes_when_the_work_fails(url: str) -> None:
    with pytest.raises(ZeroDivisionError), writer_lock(url):
        _ = 1 / 0
    assert not Path(f"{url}.lock").exists()


def test_partitions_hold_a_store_together_and_keep_a_whole_writer_out(url: str) -> None:
    with partition_lock(url, Partition(1, 2)), partition_lock(url, Partition(2, 2)):
        with pytest.raises(ArtefactError, match="held by partition 1/2"), writer_lock(url):
            pass
        assert not Path(f"{url}.lock").exists()


def test_locks_of_dead_partitions_are_swept_and_those_of_the_living_are_not(
    url: str, hold: Hold
) -> None:
    dead, living = hold(1, 2), hold(2, 2)
    dead.kill()
    dead.wait()
    owners = sweep_partitions(url)
    assert {path: owner["pid"] for path, owner in owners.items()} == {
        f"{url}.2-of-2.lock": living.pid
    }
    assert [path.name for path in Path(url).parent.iterdir()] == ["busi.zarr.2-of-2.lock"]


def test_partition_that_has_not_signed_yet_is_living_too(url: str) -> None:
    with partition_lock(url, Partition(1, 2)):
        Path(f"{url}.1-of-2.lock").write_text("")
        with pytest.raises(ArtefactError, match="held by an unknown writer"), writer_lock(url):
            pass
        assert Path(f"{url}.1-of-2.lock").exists()


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


def test_what_the_dead_left_goes_and_what_the_living_hold_stays(url: str, hold: Hold) -> None:
    hold(1, 2)
    for suffix in ("2-of-2", "student.safetensors"):
        Path(f"{url}.{suffix}.lock").write_text("{}")
    sweep_locks(url)
    assert [path.name for path in Path(url).parent.iterdir()] == ["busi.zarr.1-of-2.lock"]
