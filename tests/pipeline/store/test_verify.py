"""pipeline.store.verify: each injected fault is found, named and mended by encoding just that."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import zarr

from lmm.latents import load_latents
from pipeline.encode import encode
from pipeline.encode.reencode import reencode
from pipeline.errors import ArtefactError
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer

SAMPLES = 70  # two shards of 35 a view


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> tuple[Manifest, Path]:
    """Seventy samples in two views: two shards of 35 cells a view."""
    folder = tmp_path_factory.mktemp("verify")
    names = tuple(f"benign ({i + 1})" for i in range(SAMPLES))
    manifest = small.ingest(small.write_busi(folder / "raw", names))
    url = folder / "store.zarr"
    encode(manifest, str(url), tokenizer, views=2, size=small.SIZE_PX)
    return manifest, url


@pytest.fixture
def store(built: tuple[Manifest, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[1], tmp_path / "store.zarr"))


def faults(store: Path) -> list[dict[str, Any]]:
    opened = open_store(str(store))
    return [fault.describe(opened) for fault in verify(opened)[1]]


def ids(store: Path, block: int) -> list[str]:
    everything: list[str] = open_store(str(store)).samples["sample_id"].to_list()
    return everything[35 * block : 35 * (block + 1)]


def chunk(store: Path, array: str, view: int, block: int) -> Path:
    block_folder = store / array / "c" / str(view) / str(block)
    return next(path for path in block_folder.rglob("*") if path.is_file())


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def digests(store: Path) -> dict[str, str]:
    return dict(open_store(str(store)).receipt()["arrays"])


def test_sound_store_has_no_fault(store: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert verify(open_store(str(store)), lambda *done: calls.append(done)) == (140, [])
    assert calls[-1] == (4, 4)


def damage(path: Path) -> None:
    flip_bit(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


ARRAYS = ("image_mean", "image_std", "mask_mean", "mask", "checksum")


@pytest.mark.parametrize("array", [*ARRAYS, "key"])
@pytest.mark.parametrize("harm", [damage, truncate, empty, delete])
def test_harmed_chunk_is_named_and_its_shard_alone_encoded_again(
    built: tuple[Manifest, Path],
    store: Path,
    tokenizer: Tokenizer,
    array: str,
    harm: Callable[[Path], None],
) -> None:
    before = digests(store)
    path = chunk(store, array, 1, 1)
    harm(path)
    (fault,) = faults(store)
    # Cells without their keys are cells that were never finished: no other file is at fault.
    lost_keys = harm is delete and array == "key"
    kind = "unfinished" if lost_keys else "missing" if harm is delete else "damaged"
    assert (fault["kind"], fault["view"]) == (kind, 1)
    assert fault["sample_ids"] == ids(store, 1)
    if not lost_keys:
        assert (fault["array"], fault["file"]) == (array, str(path.relative_to(store)))
    report = encode(
        built[0], str(store), tokenizer, views=2, size=small.SIZE_PX, repair=not lost_keys
    )
    assert (report.encoded, report.reused) == (35, 105)
    assert faults(store) == []
    assert digests(store) == before


def test_damaged_keys_do_not_keep_other_shards_of_the_view_from_being_mended(
    built: tuple[Manifest, Path], store: Path, tokenizer: Tokenizer
) -> None:
    before = digests(store)
    flip_bit(chunk(store, "mask", 1, 0))
    flip_bit(chunk(store, "key", 1, 1))
    assert [fault["array"] for fault in faults(store)] == ["mask", "key"]
    encode(built[0], str(store), tokenizer, views=2, size=small.SIZE_PX, repair=True)
    assert faults(store) == []
    assert digests(store) == before


def test_swapped_shards_are_both_named(store: Path) -> None:
    a, b = (chunk(store, "mask_mean", view, 0) for view in (0, 1))
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    found = faults(store)
    assert [(fault["kind"], fault["array"], fault["view"]) for fault in found] == [
        ("other content", "mask_mean", 0),
        ("other content", "mask_mean", 1),
    ]
    # A view that was drawn as the clean image is the same cell in both.
    assert set(found[0]["sample_ids"]) <= set(ids(store, 0))
    assert len(found[0]["sample_ids"]) > 16


def test_shards_swapped_with_their_checksums_are_found(store: Path) -> None:
    for array in ARRAYS:
        a, b = (chunk(store, array, view, 0) for view in (0, 1))
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)
    assert {fault["kind"] for fault in faults(store)} == {"other content"}


def test_shards_swapped_with_their_keys_are_not_what_is_wanted(store: Path) -> None:
    for array in (*ARRAYS, "key"):
        a, b = (chunk(store, array, view, 0) for view in (0, 1))
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)
    assert {(fault["kind"], fault["view"]) for fault in faults(store)} == {
        ("unfinished", 0),
        ("unfinished", 1),
    }


def test_one_cell_of_other_content_is_named_alone(
    built: tuple[Manifest, Path], store: Path, tokenizer: Tokenizer
) -> None:
    """Written through zarr, so that the chunk's own checksum is right."""
    array = zarr.open_group(str(store))["image_mean"]
    array[1, 3] = array[1, 3] + np.float16(0.25)
    (fault,) = faults(store)
    assert (fault["kind"], fault["array"], fault["view"]) == ("other content", "image_mean", 1)
    assert fault["sample_ids"] == [ids(store, 0)[3]]
    report = encode(built[0], str(store), tokenizer, views=2, size=small.SIZE_PX, repair=True)
    assert report.encoded == 1
    assert faults(store) == []


@pytest.mark.parametrize("name", ["notes.txt", "mask/c/7/0/0/0", "other/zarr.json"])
def test_foreign_file_is_named_and_moved_aside(
    built: tuple[Manifest, Path], store: Path, tokenizer: Tokenizer, name: str
) -> None:
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_text("mine")
    (fault,) = faults(store)
    assert (fault["kind"], fault["file"]) == ("foreign file", name)
    report = encode(built[0], str(store), tokenizer, views=2, size=small.SIZE_PX, repair=True)
    assert report.encoded == 0
    assert faults(store) == []
    assert (store.with_name("store.zarr.foreign") / name).read_text() == "mine"


def test_receipt_of_another_store_is_found_and_replaced(
    built: tuple[Manifest, Path], store: Path, small_store: str, tokenizer: Tokenizer
) -> None:
    before = digests(store)
    shutil.copy(Path(small_store, "receipt.json"), store / "receipt.json")
    (fault,) = faults(store)
    assert (fault["kind"], fault["file"]) == ("other receipt", "receipt.json")
    encode(built[0], str(store), tokenizer, views=2, size=small.SIZE_PX, repair=True)
    assert digests(store) == before


def test_receipt_with_other_digests_is_found_and_replaced(
    built: tuple[Manifest, Path], store: Path, tokenizer: Tokenizer
) -> None:
    before = digests(store)
    receipt = json.loads((store / "receipt.json").read_text())
    receipt["arrays"]["mask"] = "0" * 64
    (store / "receipt.json").write_text(json.dumps(receipt))
    (fault,) = faults(store)
    assert fault["kind"] == "other receipt"
    encode(built[0], str(store), tokenizer, views=2, size=small.SIZE_PX, repair=True)
    assert digests(store) == before


@pytest.mark.parametrize("key", ["config_digest", "manifest_digest", "samples_digest", "by_split"])
def test_receipt_of_other_settings_or_samples_is_found_though_the_arrays_are_the_same(
    store: Path, key: str
) -> None:
    receipt = json.loads((store / "receipt.json").read_text())
    receipt[key] = {"train": 70} if key == "by_split" else "0" * 64
    (store / "receipt.json").write_text(json.dumps(receipt))
    (fault,) = faults(store)
    assert (fault["kind"], fault["what"]) == (
        "other receipt",
        "receipt.json is that of another store",
    )


def test_missing_receipt_is_found(store: Path) -> None:
    (store / "receipt.json").unlink()
    (fault,) = faults(store)
    assert fault["kind"] == "unfinished"


def test_what_a_killed_writer_left_is_no_fault_and_goes_when_the_store_is_finished(
    built: tuple[Manifest, Path], store: Path, tokenizer: Tokenizer
) -> None:
    left = store / "mask/c/0/0/0/0.5e1f.partial"
    left.write_bytes(b"half a chunk")
    assert faults(store) == []
    (store / "receipt.json").unlink()
    encode(built[0], str(store), tokenizer, views=2, size=small.SIZE_PX)
    assert not left.exists()


def test_damaged_chunk_is_never_read_as_data(store: Path) -> None:
    flip_bit(chunk(store, "checksum", 0, 0))
    with pytest.raises(ArtefactError, match="chunk checksum/c/0/0/0/0 is damaged"):
        load_latents(open_store(str(store)), "train")


def test_arrays_too_small_for_the_samples_are_mended(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a sync leaves them that was cut short: samples of now, an array's shape of before."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 2)
    whole = small.ingest(small.write_busi(tmp_path / "raw"))
    few = small.without(whole, "malignant (1)", "malignant (2)", "benign (4)")
    url, settings = tmp_path / "s.zarr", {"views": 2, "size": small.SIZE_PX}
    encode(few, str(url), tokenizer, **settings)
    before = {name: (url / name / "zarr.json").read_bytes() for name in ("key", "mask_mean")}
    encode(whole, str(url), tokenizer, **settings)
    receipt = open_store(str(url)).receipt()
    for name, content in before.items():
        (url / name / "zarr.json").write_bytes(content)
    for repair in (True, False):
        assert encode(whole, str(url), tokenizer, **settings, repair=repair).complete
        assert open_store(str(url)).receipt() == receipt
        assert verify(open_store(str(url))) == (12, [])


def test_a_damaged_key_of_a_former_view_is_named_and_mended(
    built: tuple[Manifest, Path], store: Path, tokenizer: Tokenizer
) -> None:
    """Nobody reads it until the view is asked for again."""
    settings: dict[str, Any] = {"size": small.SIZE_PX}
    receipt = open_store(str(store)).receipt()
    encode(built[0], str(store), tokenizer, views=1, **settings)
    flip_bit(chunk(store, "key", 1, 0))
    found = [(fault["kind"], fault["file"]) for fault in faults(store)]
    assert found == [("damaged", "key/c/1/0/0")]
    encode(built[0], str(store), tokenizer, views=2, repair=True, **settings)
    assert open_store(str(store)).receipt() == receipt


# --- encoded once more


def test_cells_encoded_once_more_are_those_that_are_stored(
    store: Path, tokenizer: Tokenizer
) -> None:
    assert reencode(open_store(str(store)), tokenizer, 10) == (10, [])


@small.ZARR_WARNS_OF_PACKED_BITS
@pytest.mark.parametrize(
    ("array", "change"), [("image_mean", 0.02), ("image_std", 0.05), ("mask", True)]
)
def test_cell_that_encodes_to_something_else_is_named(
    store: Path, tokenizer: Tokenizer, array: str, change: float
) -> None:
    cells = zarr.open_group(str(store))[array]
    wrong = np.array(cells[1])
    if array == "mask":
        wrong[:, 0, 0] ^= True
    else:
        wrong *= np.float16(1 + change)
    cells[1] = wrong
    checked, found = reencode(open_store(str(store)), tokenizer, 140)
    assert checked == 140
    assert {(fault.array, fault.view) for fault in found} == {(array, 1)}
    assert len(found) == SAMPLES
