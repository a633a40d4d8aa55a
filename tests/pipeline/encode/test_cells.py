"""pipeline.encode.cells: too little memory, and latents that are too large for half precision."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from encoded import Stressed, counts, run
from PIL import Image

from pipeline.errors import InputError, UsageError
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
    ],
    ids=["device", "host"],
)
def test_batch_is_halved_until_it_fits(
    raw: Path, url: str, tokenizer: Tokenizer, tmp_path: Path, error: RuntimeError
) -> None:
    sizes: list[int] = []

    def encode_few(pixels: torch.Tensor, precision: str) -> Any:
        sizes.append(len(pixels) // 2)  # an image and a mask a cell
        if len(pixels) > 4:
            raise error
        return tokenizer.encode(pixels, precision)

    stressed: Any = Stressed(tokenizer, encode_few)
    assert counts(run(small.ingest(raw), url, stressed, batch_size=8)) == (12, 0, 12)
    # 8 asks for all six; the size that fits is kept.
    assert sizes == [6, 4, 2, 2, 2, 2, 2, 2]
    other = str(tmp_path / "whole.zarr")
    run(small.ingest(raw), other, tokenizer, batch_size=6)
    for name in ("image_mean", "image_std", "mask_mean", "mask"):
        for view in (0, 1):
            one, all_at_once = (open_store(u).read_shard(name, view, 0) for u in (url, other))
            np.testing.assert_allclose(
                one.astype(np.float32), all_at_once.astype(np.float32), rtol=2e-3, atol=2e-3
            )


def test_one_cell_too_many_for_memory_is_said(raw: Path, url: str, tokenizer: Tokenizer) -> None:
    def encode_none(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stressed: Any = Stressed(tokenizer, encode_none)
    with pytest.raises(UsageError, match="more than the memory of cpu") as caught:
        run(small.ingest(raw), url, stressed, batch_size=4)
    assert "--size" in caught.value.fix


def test_other_runtime_errors_are_not_taken_for_lack_of_memory(
    raw: Path, url: str, tokenizer: Tokenizer
) -> None:
    def encode_none(*_: Any) -> Any:
        raise RuntimeError("expected scalar type Half")

    stressed: Any = Stressed(tokenizer, encode_none)
    with pytest.raises(RuntimeError, match="scalar type Half"):
        run(small.ingest(raw), url, stressed, batch_size=4)


def overflow_on_white(tokenizer: Tokenizer, precisions: set[str]) -> Any:
    """The tokenizer, but for white images in those precisions, which it encodes to infinity."""

    def encode_most(pixels: torch.Tensor, precision: str) -> Any:
        mean, std = tokenizer.encode(pixels, precision)
        white = (pixels > 0.99).flatten(1).all(dim=1)
        if precision in precisions:
            mean = torch.where(white[:, None, None, None], torch.inf, mean)
        return mean, std

    return Stressed(tokenizer, encode_most)


@pytest.fixture
def with_white(raw: Path) -> Manifest:
    with Image.open(small.image_path(raw, "benign (3)")) as image:
        white = Image.new("RGB", image.size, "white")
    white.save(small.image_path(raw, "benign (3)"))
    return small.ingest(raw)


def test_cell_that_overflows_in_half_precision_is_encoded_in_full(
    with_white: Manifest, url: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = {"views": 1, "batch_size": 4}
    run(with_white, url, overflow_on_white(tokenizer, {"bf16"}), precision="bf16", **settings)
    other = {p: str(tmp_path / f"{p}.zarr") for p in ("fp32", "bf16")}
    for precision, place in other.items():
        run(with_white, place, tokenizer, precision=precision, **settings)
    got = open_store(url).read_shard("image_mean", 0, 0)
    full, half = (open_store(u).read_shard("image_mean", 0, 0) for u in other.values())
    # Alone in its batch the second time: equal to the last bit but one of float16.
    np.testing.assert_allclose(got[2], full[2], rtol=2e-3, atol=1e-4)
    assert (got[2] != half[2]).any()
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(got[others], half[others])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cell_that_is_not_finite_even_in_full_precision_is_named(
    with_white: Manifest, url: str, tokenizer: Tokenizer, precision: str
) -> None:
    stressed = overflow_on_white(tokenizer, {"fp32", "bf16"})
    with pytest.raises(InputError, match="1 samples encode to latents that are not fin") as caught:
        run(with_white, url, stressed, views=1, precision=precision)
    assert "benign (3)" in caught.value.message
    assert "benign (2)" not in caught.value.message
    assert open_store(url).receipt() is None
    assert not open_store(url).present()[0, 2]
