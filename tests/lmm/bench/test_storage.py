"""bench storage: bytes counted by hand, cells decoded by diffusers, bits rounded as written."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from lmm.bench.storage import _rounded
from lmm.metrics import score
from pipeline.store import open_store
from pipeline.tokenizer import load_tokenizer

CELL_BYTES = 2 * 4 * 8 * 8 * 2  # image and mask mean of the small store, float16
CRC_BYTES = 4


def test_variants_are_weighed_and_the_lossless_ones_decode_alike(small_store: str) -> None:
    result = CliRunner().invoke(main, ["bench", "storage", "--latents", small_store, "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["variant"]: row for row in json.loads(result.stdout)["variants"]}
    weighed = {name: row["bytes_per_cell"] for name, row in rows.items()}
    assert weighed["chunk 1"] == CELL_BYTES + CRC_BYTES
    # Six cells in a chunk of 64: the place of the other 58 is written too.
    assert weighed["chunk 64"] == pytest.approx((64 * CELL_BYTES + CRC_BYTES) / 6)
    assert weighed["float32"] == pytest.approx((64 * 2 * CELL_BYTES + CRC_BYTES) / 6)
    assert weighed["mantissa 3 bits"] < weighed["zstd, bits shuffled"] < weighed["chunk 64"]
    store = open_store(small_store)
    latents = torch.from_numpy(store.array("mask_mean")[0]).float()
    with torch.no_grad():
        pixels = load_tokenizer(store.tokenizer["name"]).autoencoder.decode(latents).sample
    expected = score(pixels.mean(1) > 0, np.asarray(store.array("mask")[0]))["dsc"].mean()
    for name, row in rows.items():
        if name.startswith("mask:"):
            assert row["dsc"] is None
        elif name.startswith(("chunk", "zstd", "lz4")):
            assert row["dsc"] == pytest.approx(expected), name
    shown = CliRunner().invoke(main, ["bench", "storage", "--latents", small_store])
    assert f"{weighed['chunk 1']:.0f}" in shown.stdout


def test_rounding_keeps_so_many_bits_of_mantissa() -> None:
    cells = np.array([[1.07, -1.05, 3.3, 0.0]], np.float16)
    # Three bits: eighths between 1 and 2, quarters between 2 and 4.
    assert _rounded(3)(cells).tolist() == [[1.125, -1.0, 3.25, 0.0]]
