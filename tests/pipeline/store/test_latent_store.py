"""The store as others see it: plain zarr and parquet, keys that mean something, no false data."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import small
import zarr
from PIL import Image

from pipeline.augment import PARAMETERS, draw_views
from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import open_store, store_exists
from pipeline.store.create import create_store
from pipeline.store.finish import array_digests
from pipeline.store.keys import cell_keys, plan_of
from pipeline.tokenizer import load_tokenizer

ATTRIBUTES: dict[str, Any] = {
    "tokenizer": {"name": "t", "digest": "abc", "deterministic": False},
    "preprocessing": {"size": 64, "precision": "fp32"},
    "views": 3,
    "view_policy": {},
    "seed": 0,
}
SAMPLES = pl.DataFrame(
    {
        "sample_id": ["a", "b"],
        "dataset": ["busi", "busi"],
        "split": ["train", "test"],
        "image": ["a.png", "b.png"],
        "image_sha256": ["11" * 32, "22" * 32],
        "mask_sha256": ["33" * 32, "44" * 32],
    }
)


def keys(
    attributes: dict[str, Any] = ATTRIBUTES,
    samples: pl.DataFrame = SAMPLES,
    plan: pl.DataFrame | None = None,
) -> np.ndarray:
    plan = draw_views(samples["sample_id"].to_list(), 3) if plan is None else plan
    return cell_keys(attributes, samples, plan, 3)


def changed(one: np.ndarray, other: np.ndarray) -> list[list[bool]]:
    """Which cells have another key; by view, then sample."""
    return (one != other).any(axis=2).tolist()


# --- read by others


@small.ZARR_WARNS_OF_PACKED_BITS
def test_plain_zarr_reads_arrays_dimensions_and_units(small_store: str) -> None:
    store = Path(small_store)
    group = zarr.open(store, mode="r")
    arrays = {path.parent.name: group[path.parent.name] for path in store.glob("*/zarr.json")}
    side = small.SIZE_PX // 8
    latent = (3, 6, 4, side, side), "float16", ("view", "sample", "channel", "y", "x")
    assert {
        name: (array.shape, str(array.dtype), array.metadata.dimension_names)
        for name, array in arrays.items()
    } == {
        "image_mean": latent,
        "image_std": latent,
        "mask_mean": latent,
        "mask": ((3, 6, small.SIZE_PX, small.SIZE_PX), "bool", ("view", "sample", "row", "column")),
        "checksum": ((3, 6, 4, 8), "uint8", ("view", "sample", "array", "byte")),
        "key": ((3, 6, 16), "uint8", ("view", "sample", "byte")),
    }
    for name in ("image_mean", "image_std", "mask_mean"):
        assert "scaling factor not applied" in arrays[name].attrs["units"]
        assert np.isfinite(arrays[name][:]).all()
    assert (arrays["image_std"][:] > 0).all()
    assert arrays["key"][:].any(axis=2).all()


@small.ZARR_WARNS_OF_PACKED_BITS
def test_plain_polars_reads_the_rows_in_array_order(small_store: str) -> None:
    rows = pl.read_parquet(f"{small_store}/samples.parquet")
    assert rows["sample_id"].to_list() == sorted(small.SAMPLES)
    assert {"split", "group_id", "class", "image", "masks", "image_sha256"} <= set(rows.columns)
    masks = zarr.open_array(f"{small_store}/mask", mode="r")[0]
    # benign (1) has two masks: 30 and 30 of 70 rows, 40 of 80 columns; stored is their union.
    assert masks[0].mean() == pytest.approx((30 + 20) / 70 * 40 / 80, abs=0.02)
    # malignant (2), the last: box from row 15 to 40 of 75
    assert masks[5].mean() == pytest.approx(25 / 75 * 40 / 80, abs=0.02)


def test_attributes_say_how_the_store_was_made(small_store: str) -> None:
    attributes = json.loads(Path(small_store, "zarr.json").read_text())["attributes"]
    assert attributes["format_version"] == 4
    assert attributes["tokenizer"]["scaling_factor"] == 0.18215
    assert re.fullmatch("[0-9a-f]{64}", attributes["tokenizer"]["digest"])
    assert attributes["preprocessing"]["size"] == small.SIZE_PX
    assert (attributes["views"], attributes["seed"]) == (3, 0)
    assert attributes["view_policy"]["rotation_deg"] == 20
    assert {"torch", "diffusers", "kornia", "zarr"} <= attributes["software"].keys()
    assert "manifest_digest" in attributes


def test_receipt_holds_counts_and_digests_but_no_time_or_place(small_store: str) -> None:
    text = Path(small_store, "receipt.json").read_text()
    receipt = json.loads(text)
    assert (receipt["views"], receipt["samples"]) == (3, 6)
    assert sum(receipt["by_split"].values()) == 6
    assert receipt["arrays"].keys() == {"image_mean", "image_std", "mask_mean", "mask"}
    assert str(Path(small_store).parent) not in text
    assert not {"time", "seconds", "host", "date"} & receipt.keys()


@small.ZARR_WARNS_OF_PACKED_BITS
def test_array_digest_is_sha256_over_cells_by_view_and_sample_id(small_store: str) -> None:
    rows = pl.read_parquet(f"{small_store}/samples.parquet")
    array = zarr.open_array(f"{small_store}/mask", mode="r")[:]
    order = sorted(range(6), key=lambda row: rows["sample_id"][row])
    digest = hashlib.sha256()
    for view in range(3):
        for row in order:
            digest.update(hashlib.sha256(array[view, row].tobytes()).digest())
    assert array_digests(open_store(small_store))["mask"] == digest.hexdigest()


# --- keys


@pytest.mark.parametrize(
    "attributes",
    [
        {**ATTRIBUTES, "tokenizer": {"digest": "abd"}},
        {**ATTRIBUTES, "preprocessing": {"size": 72, "precision": "fp32"}},
        {**ATTRIBUTES, "preprocessing": {"size": 64, "precision": "bf16"}},
    ],
    ids=["tokenizer", "size", "precision"],
)
def test_every_key_changes_with_tokenizer_and_preprocessing(attributes: dict[str, Any]) -> None:
    assert changed(keys(), keys(attributes)) == [[True, True]] * 3


def test_every_key_changes_with_the_encoder_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr("pipeline.store.keys.ENCODER_VERSION", 2)
    assert changed(before, keys()) == [[True, True]] * 3


@pytest.mark.parametrize("column", ["image_sha256", "mask_sha256"])
def test_keys_of_one_sample_change_with_its_bytes(column: str) -> None:
    other = SAMPLES.with_columns(pl.Series(column, [SAMPLES[column][0], "ff" * 32]))
    assert changed(keys(), keys(samples=other)) == [[False, True]] * 3


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_key_of_one_cell_changes_with_each_parameter_of_its_view(parameter: str) -> None:
    plan = draw_views(["a", "b"], 3)
    values = plan[parameter].to_list()
    values[4] += 1e-12  # sample b, view 1
    other = plan.with_columns(pl.Series(parameter, values))
    assert changed(keys(plan=plan), keys(plan=other)) == [
        [False, False],
        [False, True],
        [False, False],
    ]


def test_keys_of_a_store_of_before_contrast_are_as_they_were() -> None:
    """The digest is of what commit afe55e2 gave for them, two of the sixteen being in colour."""
    drawn_before = {**ATTRIBUTES, "view_policy": {"p_colour": 0.2, "brightness": 0.1}}
    plan = plan_of(drawn_before, SAMPLES, range(8))
    assert (plan["contrast"] == 1).all()
    found = hashlib.sha256(cell_keys(ATTRIBUTES, SAMPLES, plan, 8).tobytes()).hexdigest()
    assert found == "ba7b0da42c9b950ac8d80d2992882ad59a88c3dd315bbe1552bf634849e447b0"


def test_keys_do_not_change_with_names_splits_or_what_else_a_tokenizer_is_called() -> None:
    plan = draw_views(["a", "b"], 3)
    samples = SAMPLES.with_columns(
        sample_id=pl.Series(["c", "d"]), split=pl.lit("val"), image=pl.lit("moved.png")
    )
    named = {**ATTRIBUTES, "tokenizer": {"name": "/elsewhere", "digest": "abc"}, "seed": 5}
    assert not np.any(changed(keys(plan=plan), keys(named, samples, plan)))


def test_only_cells_of_equal_content_have_equal_keys_and_none_has_the_absent_one() -> None:
    plan = draw_views(["a", "b"], 3)
    # Drawn views may by chance be the clean one.
    contents = plan.select("sample_id", *PARAMETERS).n_unique()
    unique = {key.tobytes() for key in keys(plan=plan).reshape(-1, 16)}
    assert len(unique) == contents
    assert bytes(16) not in unique


# --- no false data


def chunk_files(store: Path, name: str) -> list[Path]:
    return sorted(path for path in (store / name / "c").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["image_mean", "image_std", "mask_mean", "mask"])
def test_missing_chunk_is_an_error_that_names_it(store_copy: Path, name: str) -> None:
    chunk = chunk_files(store_copy, name)[1]
    chunk.unlink()
    store = open_store(str(store_copy))
    assert len(store.read_shard(name, 0, 0)) == 6
    with pytest.raises(ArtefactError, match="is missing") as caught:
        store.read_shard(name, 1, 0)
    assert str(chunk.relative_to(store_copy)) in caught.value.message
    with pytest.raises(ArtefactError, match="is missing"):
        array_digests(store)


@pytest.mark.parametrize("name", ["image_mean", "image_std", "mask_mean", "mask"])
@pytest.mark.parametrize("place", [0, -1, 0.5])
def test_flipped_bit_is_an_error_that_names_the_chunk(
    store_copy: Path, name: str, place: float
) -> None:
    chunk = chunk_files(store_copy, name)[2]
    content = bytearray(chunk.read_bytes())
    content[int(place * len(content)) if place == 0.5 else int(place)] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ArtefactError, match="is damaged") as caught:
        open_store(str(store_copy)).read_shard(name, 2, 0)
    assert str(chunk.relative_to(store_copy)) in caught.value.message


def test_truncated_chunk_is_an_error(store_copy: Path) -> None:
    chunk = chunk_files(store_copy, "image_mean")[0]
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(ArtefactError, match="is damaged"):
        open_store(str(store_copy)).read_shard("image_mean", 0, 0)


def test_flipped_bit_in_a_key_is_an_error(store_copy: Path) -> None:
    chunk = chunk_files(store_copy, "key")[0]
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"chunk key/c/\d/0/0 is damaged"):
        open_store(str(store_copy)).present()


def test_shard_of_nothing_but_background_is_still_a_file(kl_folder: Path, tmp_path: Path) -> None:
    """Were it left out, an empty mask and a lost one would look the same."""
    root = small.write_busi(tmp_path / "raw")
    for path in root.rglob("*_mask*.png"):
        with Image.open(path) as mask:
            blank = Image.new("L", mask.size)
        blank.save(path)
    url = str(tmp_path / "s.zarr")
    encode(small.ingest(root), url, load_tokenizer(str(kl_folder)), size=small.SIZE_PX)
    assert not open_store(url).read_shard("mask", 0, 0).any()
    assert len(chunk_files(Path(url), "mask")) == 1


def test_foreign_reader_of_an_absent_cell_gets_nan(tmp_path: Path) -> None:
    url = str(tmp_path / "s.zarr")
    create_store(url, ATTRIBUTES, SAMPLES, (4, 8, 8))
    group = zarr.open_group(url, mode="r")
    assert np.isnan(group["image_mean"][:]).all()
    assert not group["key"][:].any()


def test_unfinished_store_is_refused_to_readers(store_copy: Path) -> None:
    chunk_files(store_copy, "key")[1].unlink()
    (store_copy / "receipt.json").unlink()
    store = open_store(str(store_copy))
    assert store.present().sum() == 12
    with pytest.raises(ArtefactError, match="6 of 18 cells are missing"):
        store.require_complete()


@pytest.mark.parametrize(
    ("receipt", "expected"),
    [
        (None, "only the receipt\n"),
        (b"no JSON", "only the receipt\n"),
        (b'{"format_version": 4, "views": 3}', "only the receipt is of another state"),
    ],
)
def test_without_its_own_receipt_a_store_is_refused_to_readers(
    store_copy: Path, receipt: bytes | None, expected: str
) -> None:
    if receipt is None:
        (store_copy / "receipt.json").unlink()
    else:
        (store_copy / "receipt.json").write_bytes(receipt)
    with pytest.raises(ArtefactError, match=f"0 of 18 cells are missing, {expected}"):
        open_store(str(store_copy)).require_complete()


# --- what is a store


def test_nothing_and_other_things_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    zarr.create_group(str(tmp_path / "foreign.zarr"), attributes={"multiscales": []})
    for name in ("nowhere", "empty", "foreign.zarr"):
        assert not store_exists(str(tmp_path / name))
        with pytest.raises(ArtefactError, match="no latent store") as caught:
            open_store(str(tmp_path / name))
        assert "gms-lmm encode" in caught.value.fix


def test_store_of_another_format_is_refused_by_number(store_copy: Path) -> None:
    zarr.open_group(str(store_copy), mode="r+").attrs["format_version"] = 99
    with pytest.raises(ArtefactError, match="store format 99, this version reads format 4"):
        open_store(str(store_copy))


CHUNK = {"chunk_shape": [1, 32, 4, 8, 8], "index_location": "end"}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


@pytest.mark.parametrize(
    ("codecs", "unknown"),
    [
        ([LITTLE, {"name": "gzip", "configuration": {"level": 5}}], "'gzip'"),  # zarr knows it
        ([LITTLE, {"name": "fpzip2", "configuration": {}}], "'fpzip2'"),  # nobody does
        ([{"name": "bytes", "configuration": {"endian": "big"}}], "'bytes'"),
        (
            [
                {
                    "name": "sharding_indexed",
                    "configuration": {**CHUNK, "codecs": [LITTLE], "index_codecs": [LITTLE]},
                }
            ],
            "'sharding_indexed'",
        ),
    ],
    ids=["gzip", "of the future", "big-endian", "zarr's shards"],
)
def test_codec_that_is_not_known_is_said_to_be_unknown_and_not_damage(
    store_copy: Path, codecs: list[Any], unknown: str
) -> None:
    described = store_copy / "image_mean" / "zarr.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "codecs": codecs}))
    with pytest.raises(ArtefactError) as caught:
        open_store(str(store_copy))
    assert caught.value.message == (
        f"{store_copy}: array image_mean is stored with codec {unknown}, "
        "which this version cannot decode"
    )
    assert "encode the data set into a new store" in caught.value.fix


@pytest.mark.parametrize("kind", ["file", "folder", "dataset", "zarr", "array", "empty group"])
def test_what_is_not_ours_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "mask"
    match kind:
        case "file":
            place.write_text("precious")
        case "folder":
            place.mkdir()
            (place / "thesis.tex").write_text("precious")
        case "dataset":  # folders that have the names of our arrays
            (place / "mask").mkdir(parents=True)
            (place / "mask" / "1.png").write_text("precious")
        case "zarr":
            group = zarr.create_group(str(place), attributes={"multiscales": [1]})
            group.create_array("mask", shape=(3,), dtype="uint8")[:] = 7
        case "array":
            zarr.create_array(str(place), shape=(3,), dtype="uint8")[:] = 7
        case "empty group":
            group = zarr.create_group(str(place))
            group.create_array("precious", shape=(3,), dtype="uint8")[:] = 7
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="is not a latent store"):
        create_store(str(place), ATTRIBUTES, SAMPLES, (4, 8, 8))
    assert before
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_store_on_another_filesystem_is_the_same_store(kl_folder: Path, tmp_path: Path) -> None:
    manifest = small.ingest(small.write_busi(tmp_path / "raw"))
    tokenizer = load_tokenizer(str(kl_folder))
    urls = [str(tmp_path / "s.zarr"), "memory://test/s.zarr"]
    for url in urls:
        encode(manifest, url, tokenizer, size=small.SIZE_PX)
    local, remote = (open_store(url) for url in urls)
    assert local.receipt() == remote.receipt()
    assert (local.name, remote.name) == ("s", "s")
    assert encode(manifest, urls[1], tokenizer, size=small.SIZE_PX).encoded == 0


def test_digest_of_the_samples_is_that_of_their_rows_as_one_json_list(small_store: str) -> None:
    store = open_store(small_store)
    rows = store.samples.drop("twin_group", "fold").sort("sample_id").rows()
    receipt = store.receipt()
    assert receipt
    assert receipt["samples_digest"] == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
