"""pipeline.encode.work: what would be encoded and why, with nothing touched."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
from PIL import Image, ImageOps

from pipeline.archive import build_manifest
from pipeline.augment import POLICY
from pipeline.encode import encode
from pipeline.encode.work import find_work, store_attributes
from pipeline.errors import UsageError
from pipeline.manifest import Manifest
from pipeline.samples import decode_sample, read_truth
from pipeline.store import open_store
from pipeline.store.keys import plan_of
from pipeline.tokenizer import Tokenizer

Count = Callable[..., dict[str, int]]


@pytest.fixture
def count(url: str, tokenizer: Tokenizer) -> Count:
    """Reasons, counted, of the state the folder is in now."""

    def count(manifest: Manifest, views: int = 2, seed: int = 0) -> dict[str, int]:
        settings = (tokenizer, views, small.SIZE_PX, seed, "fp32")
        return find_work(url, manifest, store_attributes(manifest, *settings)).counts()

    return count


@pytest.fixture
def encoded(raw: Path, url: str, tokenizer: Tokenizer) -> Manifest:
    """Six samples in two views."""
    manifest = small.ingest(raw)
    encode(manifest, url, tokenizer, views=2, size=small.SIZE_PX)
    return manifest


def test_everything_is_new_where_there_is_no_store(raw: Path, url: str, count: Count) -> None:
    assert count(small.ingest(raw)) == {"new sample": 12}
    assert not Path(url).exists()


def test_nothing_is_to_do_in_a_finished_store(encoded: Manifest, count: Count) -> None:
    assert count(encoded) == {}


def test_each_change_has_its_reason(encoded: Manifest, raw: Path, url: str, count: Count) -> None:
    small.edit_image(raw, "benign (2)")
    mask = small.image_path(raw, "benign (3)").with_name("benign (3)_mask.png")
    other = small.image_path(raw, "benign (4)").with_name("benign (4)_mask.png")
    mask.write_bytes(other.read_bytes())
    small.write_image(small.image_path(raw, "benign (3)"), 2, 73)  # as high as the other's mask
    small.write_busi(raw, ("benign (7)",))
    before = {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}
    assert count(small.ingest(raw), views=3) == {
        "new sample": 3,
        "image edited": 6,
        "view added": 4,
    }
    assert {path: path.read_bytes() for path in Path(url).rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("three_shards")
def test_each_change_has_its_reason_however_few_cells_are_looked_at_at_once(
    raw: Path, url: str, tokenizer: Tokenizer, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(small.ingest(raw), url, tokenizer, views=2, size=small.SIZE_PX)
    monkeypatch.setattr("pipeline.store.shards._CELLS_AT_ONCE", 1)
    store = open_store(url)
    assert [(*blocks,) for blocks, _ in store.shards.spans(2)] == [(0,), (1,), (2,)]
    assert store.present().all()
    small.edit_image(raw, "benign (2)")
    small.edit_image(raw, "malignant (2)")
    small.write_busi(raw, ("benign (7)",))
    found = count(small.ingest(raw), views=3)
    assert found == {"new sample": 3, "image edited": 6, "view added": 4}


def test_edited_mask_is_told_from_an_edited_image(encoded: Manifest, count: Count) -> None:
    edited = encoded.frame.with_columns(
        mask_sha256=pl.when(pl.col("sample_id") == "benign (3)")
        .then(pl.lit("0" * 64))
        .otherwise("mask_sha256")
    )
    changed = Manifest(edited, encoded.root, encoded.layout, encoded.labels)
    assert count(changed) == {"mask edited": 2}


def test_another_seed_draws_views_anew_and_leaves_the_clean_one(
    encoded: Manifest, count: Count
) -> None:
    reasons = count(encoded, seed=1)
    assert reasons.keys() == {"view drawn anew"}
    assert 0 < reasons["view drawn anew"] <= 6


def test_a_store_of_before_contrast_is_whole_and_gets_it_with_the_next_encode(
    encoded: Manifest, url: str, tokenizer: Tokenizer, count: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = replace(POLICY, contrast=0.0, p_colour=0.5)
    monkeypatch.setattr("pipeline.encode.work.POLICY", without)
    encode(encoded, url, tokenizer, views=4, size=small.SIZE_PX)
    store = open_store(url, "r+")
    policy = store.attributes["view_policy"]
    plan = plan_of(store.attributes, store.samples, range(4))
    in_colour = int((plan["saturation"] != 1).sum())
    del policy["contrast"]
    store.group.update_attributes({"view_policy": policy})
    assert open_store(url).present().all()
    monkeypatch.setattr("pipeline.encode.work.POLICY", replace(without, contrast=0.1))
    assert 0 < in_colour < 18
    assert count(encoded, views=4) == {"view drawn anew": in_colour}


def test_what_a_stopped_encode_left_is_not_encoded_yet(
    encoded: Manifest, url: str, tokenizer: Tokenizer, count: Count
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(encoded, url, tokenizer, views=4, size=small.SIZE_PX, progress=stop)
    reasons = count(encoded, views=4)
    assert reasons.keys() == {"not encoded yet"}
    assert reasons["not encoded yet"] in (6, 12)


def test_split_names_and_order_are_no_reason(encoded: Manifest, count: Count) -> None:
    frame = encoded.frame.with_columns(split=pl.lit("train")).reverse()
    assert count(Manifest(frame, encoded.root, encoded.layout, encoded.labels)) == {}


def test_twins_and_folds_are_no_reason(encoded: Manifest, count: Count) -> None:
    frame = encoded.frame.with_columns(
        twin_group=pl.lit("benign (1)"), fold=pl.lit(1, pl.Int32), split=pl.lit("train")
    )
    assert count(replace(encoded, frame=frame)) == {}


def test_store_of_before_twins_and_folds_gets_their_columns(
    encoded: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    store = open_store(url, "r+")
    receipt = store.receipt()
    store.samples.drop("twin_group", "fold").write_parquet(Path(url) / "samples.parquet")
    fewer = small.without(encoded, "benign (2)")
    folded = replace(fewer, frame=fewer.frame.with_columns(fold=pl.lit(2, pl.Int32)))
    report = encode(folded, url, tokenizer, views=2, size=small.SIZE_PX)
    assert report.encoded == 0
    samples = open_store(url).samples
    assert samples.drop_nulls("split")["fold"].to_list() == [2] * 5
    assert samples.drop_nulls("split")["twin_group"].null_count() == 0
    encode(encoded, url, tokenizer, views=2, size=small.SIZE_PX)
    assert open_store(url).receipt() == receipt


def test_twins_and_folds_change_no_receipt(
    encoded: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    before = open_store(url).receipt()
    frame = encoded.frame.with_columns(twin_group=pl.lit("a"), fold=pl.lit(1, pl.Int32))
    encode(replace(encoded, frame=frame), url, tokenizer, views=2, size=small.SIZE_PX)
    store = open_store(url)
    assert store.samples["fold"].to_list() == [1] * 6
    assert store.receipt() == before


def test_keys_without_a_window_are_as_they_were(encoded: Manifest, tokenizer: Tokenizer) -> None:
    attributes = store_attributes(encoded, tokenizer, 2, small.SIZE_PX, 0, "fp32")
    assert set(attributes["preprocessing"]) == {
        "size", "image_resize", "mask_resize", "mask_values", "pixel_range", "precision"
    }  # fmt: skip


@pytest.mark.parametrize("change", [{"window": (0, 4095)}, {"foreground": "#ff0000"}], ids=str)
def test_store_of_another_window_or_foreground_is_refused(
    encoded: Manifest, count: Count, change: dict[str, object]
) -> None:
    with pytest.raises(UsageError, match=r"was encoded with (window|mask_values)"):
        count(replace(encoded, **change))


def test_window_and_foreground_are_kept_with_the_store(
    raw: Path, url: str, tokenizer: Tokenizer, count: Count
) -> None:
    """12-bit images, and masks of one grey that is not white."""
    for path in raw.rglob("*.png"):
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        changed = grey // 2 if "_mask" in path.name else grey.astype(np.uint16) * 16
        Image.fromarray(changed).save(path)
    manifest = build_manifest(raw, "busi", foreground="#7f7f7f").manifest
    assert (manifest.window, manifest.foreground) == ((0, 4095), "#7f7f7f")
    encode(manifest, url, tokenizer, views=2, size=small.SIZE_PX)
    source = open_store(url).source()
    assert (source.window, source.foreground) == (manifest.window, manifest.foreground)
    image, mask = decode_sample(source, source.frame.row(0, named=True), small.SIZE_PX)
    assert image.max() > 100
    assert 0 < mask.mean() < 1
    with pytest.raises(UsageError, match="encoded with window"):
        count(replace(manifest, window=None))


def test_turned_masks_are_encoded_and_read_again_as_they_were_drawn_rightly(
    raw: Path, url: str, tokenizer: Tokenizer, encoded: Manifest
) -> None:
    """The store of masks that are turned holds the cells of the masks before they were turned."""
    right = open_store(url)
    name = encoded.frame["sample_id"][0]
    for path in encoded.mask_paths(encoded.frame.row(0, named=True)):
        with Image.open(path) as image:
            turned = ImageOps.invert(image.convert("L"))
        turned.save(path)
    manifest = build_manifest(raw, "busi", foreground="enclosed").manifest
    again = f"{url}.again"
    encode(manifest, again, tokenizer, views=right.views, size=small.SIZE_PX)
    store = open_store(again)
    for array in ("mask_mean", "mask"):
        assert np.array_equal(store.array(array)[:], right.array(array)[:])
    source = store.source()
    row = source.frame.row(by_predicate=pl.col("sample_id") == name, named=True)
    assert source.foreground == "enclosed"
    assert read_truth(source, row).mean() == encoded.frame["foreground_fraction"][0]


def test_masks_of_the_same_bytes_that_are_read_otherwise_are_refused(
    encoded: Manifest, count: Count
) -> None:
    inside_out = pl.when(sample_id="benign (2)").then(1 - pl.col("foreground_fraction"))
    frame = encoded.frame.with_columns(
        foreground_fraction=inside_out.otherwise(pl.col("foreground_fraction"))
    )
    with pytest.raises(UsageError, match=r"1 masks are read otherwise .*: benign \(2\)"):
        count(replace(encoded, frame=frame))
