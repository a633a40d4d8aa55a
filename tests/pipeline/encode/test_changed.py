"""What was edited, added or taken away since: that alone is encoded, and nothing else is lost."""

from pathlib import Path

import polars as pl
import pytest
import small
from encoded import counts, digests, fresh_digests, run

from pipeline.errors import InputError
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer


def test_edited_image_is_encoded_again_and_no_other(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run(small.ingest(raw), url, tokenizer, views=3)
    before = open_store(url).read_shard("image_mean", 1, 0)
    small.edit_image(raw, "benign (3)")
    assert counts(run(small.ingest(raw), url, tokenizer, views=3)) == (3, 15, 18)
    after = open_store(url).read_shard("image_mean", 1, 0)
    changed = (before != after).any(axis=(1, 2, 3))
    assert changed.tolist() == [False, False, True, False, False, False]
    assert digests(url) == fresh_digests(small.ingest(raw), tokenizer, tmp_path, views=3)


def test_image_that_changed_since_ingest_is_named(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    manifest = small.ingest(raw)
    small.edit_image(raw, "malignant (1)")
    with pytest.raises(InputError, match="changed since it was ingested") as caught:
        run(manifest, url, tokenizer)
    assert str(small.image_path(raw, "malignant (1)")) in caught.value.message
    assert "gms-lmm ingest" in caught.value.fix


def test_mask_that_changed_since_ingest_is_named(raw: Path, url: str, tokenizer: Tokenizer) -> None:
    manifest = small.ingest(raw)
    mask = raw / "Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png"  # the second of its two
    small.turn_mask(mask)
    with pytest.raises(InputError, match="changed since it was ingested") as caught:
        run(manifest, url, tokenizer)
    assert str(mask) in caught.value.message


def test_image_that_is_gone_is_named(raw: Path, url: str, tokenizer: Tokenizer) -> None:
    manifest = small.ingest(raw)
    small.image_path(raw, "malignant (1)").unlink()
    with pytest.raises(InputError, match=r"malignant \(1\)\.png cannot be read"):
        run(manifest, url, tokenizer)


def test_more_views_encode_only_the_new_ones(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest = small.ingest(raw)
    run(manifest, url, tokenizer, views=1)
    assert counts(run(manifest, url, tokenizer, views=3)) == (12, 6, 18)
    assert digests(url) == fresh_digests(manifest, tokenizer, tmp_path, views=3)


def test_fewer_views_and_then_more_reuse_what_there_was(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    manifest = small.ingest(raw)
    run(manifest, url, tokenizer, views=3)
    before = digests(url)
    assert counts(run(manifest, url, tokenizer, views=1)) == (0, 6, 6)
    assert open_store(url).views == 1
    assert counts(run(manifest, url, tokenizer, views=3)) == (0, 18, 18)
    assert digests(url) == before


def test_another_seed_redraws_the_views_and_keeps_the_clean_one(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest = small.ingest(raw)
    run(manifest, url, tokenizer, views=2)
    report = run(manifest, url, tokenizer, views=2, seed=1)
    # A view that is drawn alike under both seeds, such as the clean one, is not encoded again.
    assert 3 <= report.encoded <= 6
    assert report.reused == 12 - report.encoded
    assert digests(url) == fresh_digests(manifest, tokenizer, tmp_path, views=2, seed=1)


def test_added_samples_alone_are_encoded_and_order_makes_no_difference(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = small.ingest(raw)
    run(small.without(whole, "benign (1)", "malignant (1)"), url, tokenizer)
    assert counts(run(whole, url, tokenizer)) == (4, 8, 12)
    # What was there keeps its place; what is new comes last.
    assert open_store(url).samples["sample_id"].to_list()[-2:] == ["benign (1)", "malignant (1)"]
    assert digests(url) == fresh_digests(whole, tokenizer, tmp_path)
    assert len(open_store(url).receipt()["arrays"]) == 4


@pytest.mark.usefixtures("three_shards")
def test_store_grows_beyond_its_last_shard(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    small.write_busi(raw, ("benign (7)", "benign (8)", "benign (9)"))
    whole = small.ingest(raw)
    run(
        small.without(whole, "benign (7)", "benign (8)", "benign (9)", "benign (4)"), url, tokenizer
    )
    assert counts(run(whole, url, tokenizer)) == (8, 10, 18)
    assert digests(url) == fresh_digests(whole, tokenizer, tmp_path)


def test_sample_that_leaves_is_no_longer_live_and_may_come_back(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = small.ingest(raw)
    run(whole, url, tokenizer)
    before = digests(url)
    rest = small.without(whole, "benign (2)")
    assert counts(run(rest, url, tokenizer)) == (0, 10, 10)
    store = open_store(url)
    assert store.samples.filter(pl.col("split").is_null())["sample_id"].to_list() == ["benign (2)"]
    assert store.receipt()["samples"] == 5
    assert digests(url) == fresh_digests(rest, tokenizer, tmp_path)
    assert counts(run(whole, url, tokenizer)) == (0, 12, 12)
    assert digests(url) == before


@pytest.mark.usefixtures("three_shards")
def test_shard_whose_samples_have_all_left_is_not_missed(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = small.ingest(raw)
    run(whole, url, tokenizer, views=1)
    rest = small.without(whole, "benign (1)", "benign (2)")  # the first shard
    assert counts(run(rest, url, tokenizer, views=2)) == (4, 4, 8)
    assert digests(url) == fresh_digests(rest, tokenizer, tmp_path, views=2)


def test_another_split_encodes_nothing_and_changes_the_receipt(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    first, second = small.ingest(raw, seed=0), small.ingest(raw, seed=1)
    assert not first.frame["split"].equals(second.frame["split"])
    run(first, url, tokenizer)
    before = open_store(url).receipt()
    assert counts(run(second, url, tokenizer)) == (0, 12, 12)
    store = open_store(url)
    assert store.samples["split"].to_list() == second.frame["split"].to_list()
    assert store.receipt()["samples_digest"] != before["samples_digest"]
    assert store.receipt()["arrays"] == before["arrays"]
