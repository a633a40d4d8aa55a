"""pipeline.store.prune: departed cells go, the others stay, and a kill loses nothing."""

from pathlib import Path

import pytest
import small

from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store import prune as module
from pipeline.store.lock import writer_lock
from pipeline.store.prune import prune
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer


def fresh_digests(manifest: Manifest, tokenizer: Tokenizer, folder: Path, views: int) -> object:
    url = str(folder / "fresh.zarr")
    encode(manifest, url, tokenizer, views=views, size=small.SIZE_PX)
    return open_store(url).receipt()["arrays"]


def test_samples_not_in_the_manifest_go_and_their_bytes_with_them(
    whole: Manifest, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rest = small.without(whole, "benign (1)", "benign (4)", "malignant (1)")
    pruned = prune(url, rest)
    assert (pruned.samples, pruned.views) == (3, 0)
    assert pruned.bytes_after < 0.8 * pruned.bytes_before
    store = open_store(url)
    assert store.samples["sample_id"].to_list() == ["benign (2)", "benign (3)", "malignant (2)"]
    assert verify(store) == (9, [])
    assert encode(rest, url, tokenizer, views=3, size=small.SIZE_PX).encoded == 0
    assert open_store(url).receipt()["arrays"] == fresh_digests(rest, tokenizer, tmp_path, 3)


def test_samples_that_left_and_views_no_longer_asked_for_go_without_a_manifest(
    whole: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    rest = small.without(whole, "malignant (2)")
    encode(rest, url, tokenizer, views=2, size=small.SIZE_PX)
    receipt = open_store(url).receipt()
    pruned = prune(url)
    assert (pruned.samples, pruned.views) == (1, 1)
    assert open_store(url).receipt() == receipt
    assert open_store(url).array("mask").shape[:2] == (2, 5)


def test_nothing_to_drop_touches_nothing(whole: Manifest, url: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(url).rglob("*")}
    pruned = prune(url, whole)
    assert (pruned.samples, pruned.views) == (0, 0)
    assert pruned.bytes_before == pruned.bytes_after
    assert {path: path.stat().st_mtime_ns for path in Path(url).rglob("*")} == before


def test_unfinished_cells_stay_unfinished(whole: Manifest, url: str, tokenizer: Tokenizer) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(whole, url, tokenizer, views=5, size=small.SIZE_PX, progress=stop)
    present = int(open_store(url).present()[:, 2:].sum())
    rest = small.without(whole, "benign (1)", "benign (2)")
    prune(url, rest)
    store = open_store(url)
    assert int(store.present().sum()) == present
    assert store.receipt() is None
    report = encode(rest, url, tokenizer, views=5, size=small.SIZE_PX)
    assert report.reused == present
    assert verify(open_store(url)) == (20, [])


@pytest.mark.parametrize("step", ["_copy", "rename", "swap"])
def test_killed_prune_leaves_a_whole_store_and_is_finished_by_the_next(
    whole: Manifest,
    url: str,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    rest = small.without(whole, "benign (1)")

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "_copy":
            patch.setattr("pipeline.store.copy.write_receipt", kill)
        elif step == "rename":
            patch.setattr(Path, "rename", kill)
        else:
            calls = []

            def second(place: str) -> None:
                calls.append(place)
                if len(calls) == 2:
                    raise Killed

            patch.setattr(module, "_finish_swap", second)
        with pytest.raises(Killed):
            prune(url, rest)
    if step == "swap":
        with pytest.raises(ArtefactError, match="a prune was cut short"):
            open_store(url)
        with pytest.raises(ArtefactError, match="a prune was cut short"):
            encode(rest, url, tokenizer, views=3, size=small.SIZE_PX)
    else:
        assert verify(open_store(url)) == (18, [])
    prune(url, rest)
    assert verify(open_store(url)) == (15, [])
    assert {path.name for path in Path(url).parent.glob("store.zarr*")} == {"store.zarr"}


def test_nothing_left_is_refused(whole: Manifest, url: str) -> None:
    with pytest.raises(UsageError, match="no sample"):
        prune(url, small.without(whole, *small.SAMPLES))
    assert verify(open_store(url)) == (18, [])


def test_store_that_is_written_to_is_refused(whole: Manifest, url: str) -> None:
    with writer_lock(url), pytest.raises(ArtefactError, match="held by encode"):
        prune(url, whole)


def test_damaged_store_is_refused_and_kept(whole: Manifest, url: str) -> None:
    chunk = Path(url, "mask/c/1/2/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="mask/c/1/2/0/0 is damaged"):
        prune(url, small.without(whole, "benign (1)"))
    assert open_store(url).views == 3


def test_store_elsewhere_than_on_a_disk_is_refused(whole: Manifest, tokenizer: Tokenizer) -> None:
    url = "memory://pruned.zarr"
    encode(whole, url, tokenizer, views=1, size=small.SIZE_PX)
    with pytest.raises(UsageError, match="not on a local disk"):
        prune(url, small.without(whole, "benign (1)"))
