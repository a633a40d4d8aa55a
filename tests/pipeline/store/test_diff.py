"""pipeline.store.diff: in which settings, samples and cells two stores differ."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small
import zarr

from pipeline.encode import encode
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store.diff import diff_stores
from pipeline.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> tuple[Manifest, Path]:
    folder = tmp_path_factory.mktemp("diff")
    manifest = small.ingest(small.write_busi(folder / "raw"))
    encode(manifest, str(folder / "a.zarr"), tokenizer, views=2, size=small.SIZE_PX)
    return manifest, folder / "a.zarr"


def test_store_and_its_copy_are_the_same(built: tuple[Manifest, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(built[1], tmp_path / "copy.zarr")
    found = diff_stores(open_store(str(built[1])), open_store(str(copy)))
    assert found["same"]
    assert found["settings"] == {}
    assert not any(found["samples"].values())
    assert found["cells"] == {"common": 12, "same": 12}


def test_settings_are_named_with_both_values(
    built: tuple[Manifest, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    url = str(tmp_path / "b.zarr")
    encode(built[0], url, tokenizer, views=3, size=small.SIZE_PX, seed=4, precision="bf16")
    found = diff_stores(open_store(str(built[1])), open_store(url))
    assert found["settings"] == {
        "preprocessing.precision": ["fp32", "bf16"],
        "seed": [0, 4],
        "views": [2, 3],
        "eval_views": [2, 3],
    }
    assert not found["same"]


def test_samples_are_named_by_what_differs(
    built: tuple[Manifest, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    raw = small.write_busi(tmp_path / "raw")
    small.edit_image(raw, "benign (2)")
    small.image_path(raw, "malignant (2)").unlink()
    small.image_path(raw, "malignant (2)").with_name("malignant (2)_mask.png").unlink()
    small.write_busi(raw, ("benign (7)",))
    manifest = small.ingest(raw)
    frame = manifest.frame.with_columns(split=pl.lit("train"))
    changed = Manifest(frame, manifest.root, manifest.layout, manifest.labels)
    url = str(tmp_path / "b.zarr")
    encode(changed, url, tokenizer, views=2, size=small.SIZE_PX)
    found = diff_stores(open_store(str(built[1])), open_store(url))
    samples = found["samples"]
    assert samples["only in a"] == ["malignant (2)"]
    assert samples["only in b"] == ["benign (7)"]
    assert samples["image"] == ["benign (2)"]
    assert samples["mask"] == []
    moved = built[0].frame.filter(pl.col("split") != "train")["sample_id"].to_list()
    assert samples["split"] == [name for name in moved if name != "malignant (2)"]
    # Five samples in both, one of them edited, in two views.
    assert found["cells"] == {"common": 10, "same": 8}


def test_cell_of_other_content_is_counted_by_its_checksum(
    built: tuple[Manifest, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(built[1], tmp_path / "copy.zarr")
    checksum = zarr.open_group(str(copy))["checksum"]
    checksum[1, 2] = np.zeros((4, 8), np.uint8)
    found = diff_stores(open_store(str(built[1])), open_store(str(copy)))
    assert found["cells"] == {"common": 12, "same": 11}
    assert not found["same"]


def test_a_store_whose_arrays_lack_a_view_holds_no_cell_of_it(store_copy: Path) -> None:
    """As it looks to whoever opens it while a prune puts another in its place."""
    whole = open_store(str(store_copy))
    for name in ("key", "checksum"):
        metadata = store_copy / name / "zarr.json"
        content = json.loads(metadata.read_text())
        content["shape"][0] = 2
        metadata.write_text(json.dumps(content))
    cut = open_store(str(store_copy))
    assert cut.present().sum(axis=1).tolist() == [6, 6, 0]
    assert diff_stores(whole, cut)["cells"] == {"common": 12, "same": 12}
