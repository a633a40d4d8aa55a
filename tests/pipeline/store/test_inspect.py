"""What inspect says of a store, held against the files themselves."""

import json
from pathlib import Path

import pytest
import small
from click.testing import CliRunner, Result

from cli.main import main
from pipeline.encode import encode
from pipeline.store import open_store
from pipeline.store.inspect import describe_store
from pipeline.tokenizer import load_tokenizer


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["inspect", *(str(word) for word in words)])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_json_holds_the_promised_keys_and_stderr_is_empty(small_store: str) -> None:
    result = run(small_store, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    promised = {"views", "samples", "present", "latent_shape", "tokenizer", "bytes"}
    assert promised | {"bytes_per_view", "complete", "by_split", "arrays"} <= facts.keys()
    assert {"name", "digest", "scaling_factor"} <= facts["tokenizer"].keys()


def test_counts_are_those_of_the_store(small_store: str) -> None:
    facts = describe_store(open_store(small_store))
    assert (facts["views"], facts["samples"], facts["departed"]) == (3, 6, 0)
    assert (facts["present"], facts["cells"], facts["complete"]) == (18, 18, True)
    assert facts["latent_shape"] == [4, 8, 8]
    assert facts["size_px"] == small.SIZE_PX
    assert sum(facts["by_split"].values()) == 6
    assert facts["tokenizer"]["scaling_factor"] == 0.18215


def test_bytes_are_those_of_the_files(small_store: str) -> None:
    store = Path(small_store)
    facts = describe_store(open_store(small_store))
    assert facts["bytes"] == size_of(store)
    chunks = sum(size_of(store / name / "c") for name in facts["arrays"])
    assert facts["bytes_per_view"] == pytest.approx(chunks / 3, abs=1)
    assert {name: array["bytes"] for name, array in facts["arrays"].items()} == {
        name: size_of(store / name)
        for name in ("image_mean", "image_std", "mask_mean", "mask", "checksum", "key")
    }


def test_arrays_have_shape_type_and_chunk(small_store: str) -> None:
    arrays = describe_store(open_store(small_store))["arrays"]
    assert arrays["image_std"]["shape"] == [3, 6, 4, 8, 8]
    assert arrays["image_std"]["dtype"] == "float16"
    assert arrays["mask"]["shape"] == [3, 6, 64, 64]
    assert arrays["mask"]["dtype"] == "bool"
    # One chunk is one view of up to 64 samples, and has room for 32 at least.
    assert arrays["image_std"]["chunk"] == [1, 32, 4, 8, 8]


def test_unfinished_store_says_how_far_it_is(store_copy: Path) -> None:
    (store_copy / "receipt.json").unlink()
    (store_copy / "key" / "c" / "1" / "0" / "0").unlink()
    facts = json.loads(run(store_copy, "--json").stdout)
    assert (facts["present"], facts["cells"], facts["complete"]) == (12, 18, False)
    shown = run(store_copy)
    assert shown.exit_code == 0
    assert "unfinished: run gms-lmm encode again (12 of 18 cells)" in shown.stdout


def test_store_without_its_receipt_is_not_complete(store_copy: Path) -> None:
    (store_copy / "receipt.json").unlink()
    facts = describe_store(open_store(str(store_copy)))
    assert (facts["present"], facts["complete"]) == (18, False)


def test_samples_and_views_no_longer_asked_for_are_told_apart(
    tmp_path: Path, kl_folder: Path
) -> None:
    raw = small.write_busi(tmp_path / "raw")
    url, tokenizer = str(tmp_path / "s.zarr"), load_tokenizer(str(kl_folder))
    encode(small.ingest(raw), url, tokenizer, views=3, size=small.SIZE_PX)
    one_view = describe_store(open_store(url))["bytes_per_view"]
    for path in raw.rglob("malignant (2)*"):
        path.unlink()
    encode(small.ingest(raw), url, tokenizer, views=1, size=small.SIZE_PX)
    facts = describe_store(open_store(url))
    assert (facts["views"], facts["samples"], facts["departed"]) == (1, 5, 1)
    assert (facts["present"], facts["complete"]) == (5, True)
    # Masks are compressed and differ a little from view to view.
    assert facts["bytes_per_view"] == pytest.approx(one_view, rel=0.05)


def test_people_get_every_fact_with_its_unit(small_store: str) -> None:
    shown = run(small_store).stdout
    for words in ("complete (18 of 18 cells)", "3 a sample", "4 × 8 × 8 from 64 px", "MB"):
        assert words in shown
    for name in ("image_mean", "image_std", "mask_mean", "mask", "key"):
        assert name in shown


def test_no_store_is_exit_4(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere.zarr", "--json")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "no latent store" in result.stderr
