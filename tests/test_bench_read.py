"""bench read: the same bytes by every way, and rates that are what they are called."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from cli.main import main
from lmm import bench_read
from pipeline.store import open_store


def train_bytes(store: str) -> int:
    """Image mean and std and mask mean of 4 × 8 × 8 float16, and 64 × 64 bits, three views."""
    rows = pl.read_parquet(Path(store) / "samples.parquet")
    samples = rows.filter(pl.col("split") == "train").height
    return 3 * samples * (3 * 4 * 8 * 8 * 2 + 64 * 64 // 8)


def test_ratios_are_of_the_rates_beside_them(small_store: str) -> None:
    result = CliRunner().invoke(main, ["bench", "read", "--latents", small_store, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    store, npy, files = (found[f"{way}samples_per_s"] for way in ("", "npy_", "files_"))
    assert found["ratio"] == pytest.approx(store / npy)
    assert found["files_ratio"] == pytest.approx(store / files)
    assert found["cells"] == train_bytes(small_store) // (3 * 4 * 8 * 8 * 2 + 64 * 64 // 8)


def test_bytes_per_cell_are_those_of_the_files_over_all_cells(small_store: str) -> None:
    folders = [Path(small_store, name, "c") for name in ("image_mean", "image_std", "mask_mean")]
    files = [f for root in (*folders, Path(small_store, "mask/c")) for f in root.rglob("*")]
    total = sum(file.stat().st_size for file in files if file.is_file())
    assert bench_read.bytes_per_cell(open_store(small_store)) == pytest.approx(total / 18)


def test_numpy_reads_all_that_the_store_gives_from_one_file_and_from_one_a_cell_and_array(
    small_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, read = np.load, {"split": 0, "cells": 0}

    def count(file: Path) -> Any:
        read["split" if file.stem == "split" else "cells"] += load(file).nbytes
        return load(file)

    monkeypatch.setattr(np, "load", count)
    monkeypatch.setattr(bench_read, "_ROUNDS", 1)
    bench_read.bench_read(open_store(small_store))
    both_rounds = 2 * train_bytes(small_store)  # the one that warms and the one that counts
    assert read == {"split": both_rounds, "cells": both_rounds}
