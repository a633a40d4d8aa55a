"""Samples of split test are never trained on, and are encoded in fewer views than the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small

from lmm.latents import load_latents
from pipeline.encode import EncodeReport, encode
from pipeline.encode.work import find_work, store_attributes
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store.copy import copy_store
from pipeline.store.diff import diff_stores
from pipeline.store.inspect import describe_store
from pipeline.store.prune import prune
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer

VIEWS, EVAL_VIEWS = 4, 2
FEW, ALL = 3 * VIEWS + 3 * EVAL_VIEWS, 6 * VIEWS  # cells of three train and three test samples


@pytest.fixture(autouse=True)
def a_sample_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a view has shards in which there is nothing to be."""
    monkeypatch.setattr("pipeline.store.create.SHARD_SAMPLES", 1)


@pytest.fixture
def manifest(raw: Path) -> Manifest:
    found = small.ingest(raw)
    assert found.frame["split"].value_counts().sort("split").rows() == [("test", 3), ("train", 3)]
    return found


def run(manifest: Manifest, url: str, tokenizer: Tokenizer, eval_views: int) -> EncodeReport:
    settings: dict[str, Any] = {"views": VIEWS, "size": small.SIZE_PX}
    return encode(manifest, url, tokenizer, eval_views=eval_views, **settings)


def counts(manifest: Manifest, url: str, tokenizer: Tokenizer, eval_views: int) -> dict[str, int]:
    settings = (VIEWS, small.SIZE_PX, 0, "fp32", eval_views)
    return find_work(url, manifest, store_attributes(manifest, tokenizer, *settings)).counts()


def test_what_is_not_asked_for_is_neither_encoded_nor_missed(
    manifest: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    assert counts(manifest, url, tokenizer, EVAL_VIEWS) == {"new sample": FEW}
    report = run(manifest, url, tokenizer, EVAL_VIEWS)
    assert (report.encoded, report.present, report.complete) == (FEW, FEW, True)
    store = open_store(url)
    store.require_complete()
    assert verify(store) == (FEW, [])
    described = describe_store(store)
    assert (described["views"], described["eval_views"]) == (VIEWS, EVAL_VIEWS)
    assert (described["cells"], described["present"]) == (FEW, FEW)
    assert len(load_latents(store, "test").image_mean) == EVAL_VIEWS
    assert len(load_latents(store, "train").image_mean) == VIEWS


def test_more_are_added_and_fewer_change_the_receipt_alone(
    manifest: Manifest, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run(manifest, url, tokenizer, EVAL_VIEWS)
    few = open_store(url).receipt()
    run(manifest, str(tmp_path / "all.zarr"), tokenizer, VIEWS)
    every = open_store(str(tmp_path / "all.zarr"))
    found = diff_stores(every, open_store(url))
    assert found["settings"] == {"eval_views": [VIEWS, EVAL_VIEWS]}
    assert found["cells"] == {"common": FEW, "same": FEW}
    assert counts(manifest, url, tokenizer, VIEWS) == {"view added": ALL - FEW}
    assert run(manifest, url, tokenizer, VIEWS).encoded == ALL - FEW
    assert open_store(url).receipt() == every.receipt()
    assert run(manifest, url, tokenizer, EVAL_VIEWS).encoded == 0
    assert open_store(url).receipt() == few


def test_a_test_sample_that_is_to_be_trained_on_gets_its_views(
    manifest: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    run(manifest, url, tokenizer, EVAL_VIEWS)
    moved = manifest.frame.with_columns(
        split=pl.when(pl.col("sample_id") == manifest.frame.filter(split="test")["sample_id"][0])
        .then(pl.lit("train"))
        .otherwise("split")
    )
    trained = replace(manifest, frame=moved)
    assert counts(trained, url, tokenizer, EVAL_VIEWS) == {"view added": VIEWS - EVAL_VIEWS}


def test_a_damaged_cell_is_found_and_one_that_is_not_asked_for_is_not_missed(
    manifest: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    run(manifest, url, tokenizer, EVAL_VIEWS)
    before = open_store(url).receipt()
    store = open_store(url)
    train = store.samples["split"].to_list().index("train")
    (Path(url) / store.chunk_path("key", VIEWS - 1, train)).unlink()
    faults = verify(open_store(url))[1]
    assert [(fault.kind, fault.view, fault.rows) for fault in faults] == [
        ("unfinished", VIEWS - 1, (train,))
    ]
    settings: dict[str, Any] = {"views": VIEWS, "size": small.SIZE_PX, "eval_views": EVAL_VIEWS}
    assert encode(manifest, url, tokenizer, repair=True, **settings).encoded == 1
    assert open_store(url).receipt() == before


def test_copied_and_pruned_it_is_as_whole(
    manifest: Manifest, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run(manifest, url, tokenizer, EVAL_VIEWS)
    copy = copy_store(open_store(url), str(tmp_path / "copy.zarr"), "lz4")
    assert copy.receipt() == open_store(url).receipt()
    gone = manifest.frame.filter(split="test")["sample_id"][0]
    prune(url, small.without(manifest, gone))
    pruned = open_store(url)
    pruned.require_complete()
    assert verify(pruned) == (FEW - EVAL_VIEWS, [])


def test_a_store_of_before_has_all_views_of_every_sample(
    manifest: Manifest, url: str, tokenizer: Tokenizer
) -> None:
    run(manifest, url, tokenizer, VIEWS)
    receipt = open_store(url).receipt()
    del open_store(url, "r+").group.attrs["eval_views"]
    former = open_store(url)
    former.require_complete()
    assert former.eval_views == VIEWS
    assert run(manifest, url, tokenizer, VIEWS).encoded == 0
    assert open_store(url).receipt() == receipt
