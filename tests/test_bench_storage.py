"""The storage benchmark: what it writes is what it says, and every way is measured."""

import numpy as np
import pytest
import torch

from lmm.bench_storage import LATENT_CODECS, LAYOUTS, MASK_CODECS, bench_storage, precisions
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer


def test_every_way_has_its_bytes_and_its_speed(small_store: str, tokenizer: Tokenizer) -> None:
    rows = bench_storage(open_store(small_store), tokenizer)
    ways = [(row["what"], row["way"]) for row in rows]
    assert len(ways) == len(set(ways)) == len(LAYOUTS) + len(LATENT_CODECS) + len(MASK_CODECS) + 5
    assert all(row["sequential_per_s"] > 0 for row in rows)
    assert all(("random_per_s" in row) == (row["what"] == "layout") for row in rows)
    scores = {row["way"]: row["dsc"] for row in rows if "dsc" in row}
    assert scores.keys() == precisions(np.zeros(1)).keys()
    assert all(0 <= dsc <= 1 for dsc in scores.values())
    one_by_one = next(row for row in rows if row["way"] == "chunk 1")
    # (4, 8, 8) in float16 and a checksum of 4 bytes; the rest is the array's own metadata.
    samples = 3 * open_store(small_store).samples["split"].to_list().count("train")
    assert 516 < one_by_one["bytes_per_cell"] < 516 + 2000 / samples


@pytest.mark.parametrize(("way", "bits"), [("float16", 10), ("float16, 7 bits", 7)])
def test_a_precision_rounds_to_its_bits(way: str, bits: int) -> None:
    latents = torch.randn(1000, generator=torch.Generator().manual_seed(0)).numpy()
    kept = precisions(latents)[way].astype(np.float32)
    error = np.abs(kept - latents) / np.abs(latents)
    assert 0.25 * 2.0**-bits < error.max() <= 0.51 * 2.0**-bits + 2.0**-11
