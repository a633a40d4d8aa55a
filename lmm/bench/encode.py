"""How fast files become a finished store, against the bare tokenizer on ready tensors."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmm.bench.turns import ROUNDS, seconds_of
from pipeline.encode import encode
from pipeline.encode.cells import CellEncoder
from pipeline.manifest import Manifest
from pipeline.tokenizer import Tokenizer


def bench_encode(
    manifest: Manifest, tokenizer: Tokenizer, *, views: int, size: int, precision: str, samples: int
) -> dict[str, Any]:
    """Whole encode (files to finished store) against the bare tokenizer on ready tensors.

    Both encode the same number of images and masks, at the same batch size, in turns.

    returns  samples_per_s and tokenizer_samples_per_s in cells per second, and efficiency, their
             ratio; 1 would mean that reading, views, writing and receipt cost nothing
    """
    few = replace(manifest, frame=manifest.frame.head(samples))
    cells = len(few.frame) * views
    batch = CellEncoder(tokenizer, precision, None).batch_size
    pixels = torch.rand(2 * batch, 3, size, size, device=tokenizer.device) * 2 - 1

    def bare() -> None:
        for _ in range(0, cells, batch):
            tokenizer.encode(pixels, precision)[0].cpu()

    tokenizer.encode(pixels, precision)  # kernels are chosen at the first call
    whole_s = bare_s = 0.0
    for _ in range(ROUNDS):
        bare_s += seconds_of(bare)
        with tempfile.TemporaryDirectory() as folder:
            url = str(Path(folder) / "bench.zarr")
            report = encode(few, url, tokenizer, views=views, size=size, precision=precision)
            whole_s += report.seconds
    rate, bare_rate = ROUNDS * cells / whole_s, ROUNDS * cells / bare_s
    return {
        "samples_per_s": rate,
        "tokenizer_samples_per_s": bare_rate,
        "efficiency": rate / bare_rate,
        "cells": cells,
        "batch_size": batch,
        "precision": precision,
        "device": str(tokenizer.device),
    }
