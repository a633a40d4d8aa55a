"""encode --dry-run, --repair and --partition, verify, diff and prune from the command line."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small
from click.testing import CliRunner, Result

from cli.main import main
from pipeline.manifest import write_manifest
from pipeline.store.lock import writer_lock


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=False)


def as_json(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    return dict(json.loads(result.stdout))


@pytest.fixture
def words(tmp_path: Path, kl_folder: Path) -> list[str]:
    """encode's words for six samples in two views, not run yet."""
    write_manifest(small.ingest(small.write_busi(tmp_path / "raw")), tmp_path / "m.parquet")
    store = str(tmp_path / "s.zarr")
    words = ["encode", str(tmp_path / "m.parquet"), store, "--tokenizer", str(kl_folder)]
    return [*words, "--views", "2", "--size", str(small.SIZE_PX)]


def test_dry_run_says_what_and_why_and_writes_nothing(words: list[str], tmp_path: Path) -> None:
    found = as_json(*words, "--dry-run")
    # Three arrays of 4 × 8 × 8 numbers of two bytes.
    room = 12 * 3 * 4 * 8 * 8 * 2
    counted = {"to_encode": 12, "reasons": {"new sample": 12}}
    assert found == {"store": words[2], **counted, "bytes_when_done": room}
    assert not Path(words[2]).exists()
    assert "12 cells: new sample" in run(*words, "--dry-run").stdout


def test_damage_is_found_named_and_repaired(words: list[str]) -> None:
    run(*words)
    chunk = Path(words[2], "mask_mean/c/1/0/0/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    result = run("verify", words[2], "--json")
    assert result.exit_code == 5
    found = json.loads(result.stdout)
    assert (found["ok"], found["checked"], len(found["faults"])) == (False, 12, 1)
    assert found["faults"][0]["array"] == "mask_mean"
    assert len(found["faults"][0]["sample_ids"]) == 6
    assert "with --repair" in result.stderr
    assert as_json(*words, "--repair")["encoded"] == 6
    assert as_json("verify", words[2], "--reencode", "4") == {
        "store": words[2],
        "ok": True,
        "checked": 12,
        "reencoded": 4,
        "faults": [],
    }


def test_people_read_the_faults_in_sentences(words: list[str]) -> None:
    run(*words)
    Path(words[2], "notes.txt").touch()
    result = run("verify", words[2])
    assert "foreign file: notes.txt does not belong to the store" in result.stdout
    assert "12 cells checked: 1 faults" in result.stdout


def test_partitions_are_shares_and_nothing_else(words: list[str]) -> None:
    assert run(*words, "--partition", "3/2").exit_code == 2
    assert run(*words, "--partition", "1/2", "--repair").exit_code == 2
    first = run(*words, "--partition", "2/2", "--json")  # a store of one block
    assert json.loads(first.stdout)["complete"] is False
    assert "other partitions have cells left" in first.stderr
    assert as_json(*words, "--partition", "1/2")["complete"] is True


def test_second_writer_is_told_who_holds_the_store(words: list[str]) -> None:
    with writer_lock(words[2]):
        result = run(*words)
    assert result.exit_code == 4
    assert f"held by encode, process {os.getpid()}" in result.stderr
    assert f"if it is long gone, remove {words[2]}.lock" in result.stderr.replace("\n", " ")


def test_stores_differ_in_what_is_named(words: list[str], tmp_path: Path) -> None:
    run(*words)
    other = [*words[:2], str(tmp_path / "t.zarr"), *words[3:], "--seed", "5"]
    run(*other)
    found = as_json("diff", words[2], other[2])
    assert found["settings"] == {"seed": [0, 5]}
    assert "seed: 0 → 5" in run("diff", words[2], other[2]).stdout
    assert "no difference" in run("diff", words[2], words[2]).stdout


def test_prune_reclaims_what_the_manifest_no_longer_names(words: list[str], tmp_path: Path) -> None:
    run(*words)
    manifest = small.ingest(tmp_path / "raw")
    frame = manifest.frame.filter(pl.col("sample_id") != "benign (2)")
    write_manifest(replace(manifest, frame=frame), tmp_path / "fewer.parquet")
    found = as_json("prune", words[2], "--manifest", str(tmp_path / "fewer.parquet"))
    assert (found["samples"], found["views"]) == (1, 0)
    assert "0 samples and 0 views dropped" in run("prune", words[2]).stdout
