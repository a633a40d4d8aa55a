"""pipeline.encode.work: what would be encoded and why, with nothing touched."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import small

from pipeline.encode import encode
from pipeline.encode.work import find_work, store_attributes
from pipeline.manifest import Manifest
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
