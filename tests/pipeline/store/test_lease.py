"""pipeline.store.lease: who did not renew a lease in time has lost it, and notices."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import fsspec
import pytest

from pipeline.errors import ArtefactError
from pipeline.store import lease
from pipeline.store.lease import Lease
from pipeline.store.lock import writer_lock

URL = "memory://lease/busi.zarr"


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    if fs.exists("/lease"):
        fs.rm("/lease", recursive=True)
    monkeypatch.setattr(lease, "_SETTLE_S", 0.01)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time pass in which nobody renews."""
    passed = [0.0]
    clock = time.time
    monkeypatch.setattr(lease.time, "time", lambda: clock() + passed[0])

    def pass_by(seconds: float) -> None:
        passed[0] += seconds

    return pass_by


def owner() -> dict[str, Any]:
    return dict(json.loads(fsspec.filesystem("memory").cat_file("/lease/busi.zarr.lock")))


def test_second_writer_is_told_who_holds_it_and_what_to_remove() -> None:
    with writer_lock(URL):
        with pytest.raises(ArtefactError, match="is held by encode, process") as caught:
            writer_lock(URL).__enter__()
        assert caught.value.fix.endswith(f"remove {URL}.lock")
    assert not fsspec.filesystem("memory").exists("/lease/busi.zarr.lock")


@pytest.mark.parametrize(("silent_s", "taken"), [(590, False), (610, True)])
def test_lease_is_taken_over_when_it_was_not_renewed(
    later: Callable[[float], None], silent_s: float, taken: bool
) -> None:
    first = writer_lock(URL)
    first.__enter__()
    later(silent_s)
    second = writer_lock(URL, "prune")
    if taken:
        second.__enter__()
        assert owner()["what"] == "prune"
        second.__exit__(None, None, None)
    else:
        with pytest.raises(ArtefactError, match="held by encode"):
            second.__enter__()
    first.__exit__(None, None, None)


def test_owner_who_slept_too_long_gives_up_and_leaves_the_lock_to_who_has_it(
    later: Callable[[float], None],
) -> None:
    with writer_lock(URL) as first:
        first.require_held()
        later(610)
        second = writer_lock(URL, "prune")
        heir = second.__enter__()
        with pytest.raises(ArtefactError, match="lost the lock memory://lease") as caught:
            first.require_held()
        assert caught.value.exit_code == 4
        heir.require_held()
    assert owner()["what"] == "prune"
    heir.require_held()
    second.__exit__(None, None, None)


def test_owner_counts_a_minute_less_than_others_and_needs_nobody_to_take_it(
    later: Callable[[float], None],
) -> None:
    with writer_lock(URL) as lock:
        later(530)
        lock.require_held()
        later(15)
        with pytest.raises(ArtefactError, match="lost the lock"):
            lock.require_held()


def test_lease_that_another_has_is_never_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    fs = fsspec.filesystem("memory")
    with writer_lock(URL) as lock:
        other = json.dumps({**owner(), "token": "another"}).encode()
        deadline = time.monotonic() + 20
        while fs.cat_file("/lease/busi.zarr.lock") != other:  # over a renewal at that moment
            assert time.monotonic() < deadline
            fs.pipe_file("/lease/busi.zarr.lock", other)
            time.sleep(0.1)
        with pytest.raises(ArtefactError, match="lost the lock"):
            lock.require_held()
    assert fs.cat_file("/lease/busi.zarr.lock") == other


def test_owner_renews_it_and_goes_on_when_the_store_did_not_answer_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    write, failed = Lease._write, threading.Event()

    def fail_once(self: Lease, **mode: str) -> None:
        if not mode and not failed.is_set():
            failed.set()
            raise OSError("the store does not answer")
        write(self, **mode)

    monkeypatch.setattr(Lease, "_write", fail_once)
    with writer_lock(URL) as lock:
        first = owner()["alive"]
        deadline = time.monotonic() + 20
        while owner()["alive"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lock.require_held()
    assert failed.is_set()


def test_of_two_that_take_over_at_once_one_has_it(later: Callable[[float], None]) -> None:
    fs = fsspec.filesystem("memory")
    dead = Lease(fs, "/lease/busi.zarr.lock", {"what": "encode"})
    assert dead.take()
    later(610)
    heirs = [Lease(fs, "/lease/busi.zarr.lock", {"what": str(i)}) for i in range(2)]
    start = threading.Barrier(2)

    def take(heir: Lease) -> None:
        start.wait()
        heir.take()

    threads = [threading.Thread(target=take, args=(heir,)) for heir in heirs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    held = [heir.still_held() for heir in heirs]
    assert sum(held) == 1
    for one in (dead, *heirs):
        one.release()
    assert not fs.exists("/lease/busi.zarr.lock")


def test_what_is_no_lease_makes_way() -> None:
    fsspec.filesystem("memory").pipe_file("/lease/busi.zarr.lock", b"{")
    with writer_lock(URL):
        assert owner()["what"] == "encode"
