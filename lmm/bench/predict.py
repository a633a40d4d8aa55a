"""How fast image files become mask files, against bare tokenizer, model and decoder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmm.bench.turns import ROUNDS, seconds_of
from lmm.predict import Predictor
from lmm.predict.files import predict_files


def bench_predict(
    model: Predictor, images: Sequence[Path], *, batch_size: int | None = None
) -> dict[str, Any]:
    """Whole predict (image files to mask files) against bare E, LMM and D on ready pixels.

    Both take the same number of images, at the same batch size and precision, in turns.

    returns  images_per_s, compute_images_per_s, and efficiency, their ratio; 1 would mean that
             reading, resizing and writing cost nothing
    """
    batch = batch_size or model.at_a_time
    shape = (batch, model.size, model.size, 3)
    pixels_u8 = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def compute() -> None:
        for start in range(0, len(images), batch):
            model.grey_maps(pixels_u8[: len(images) - start], batch)

    model.grey_maps(pixels_u8, batch)  # kernels are chosen at the first call
    whole_s = compute_s = 0.0
    for _ in range(ROUNDS):
        compute_s += seconds_of(compute)
        with tempfile.TemporaryDirectory() as folder:
            done = predict_files(model, images, Path(folder), batch_size=batch)
        if done.skipped:
            raise done.skipped[0]
        whole_s += done.seconds
    rate, compute_rate = ROUNDS * len(images) / whole_s, ROUNDS * len(images) / compute_s
    return {
        "images_per_s": rate,
        "compute_images_per_s": compute_rate,
        "efficiency": rate / compute_rate,
        "images": len(images),
        "batch_size": batch,
        "precision": model.precision,
        "e_precision": getattr(model, "e_precision", None),
        "device": str(model.device),
    }
