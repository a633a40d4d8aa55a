"""What another layout, codec or precision of the store would cost: bytes, reading, DSC."""

import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import zarr
from numcodecs import BitRound
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from lmm.decoder import MaskDecoder
from lmm.latents import Latents, load_latents, model_latent
from lmm.metrics import score
from pipeline.store import LatentStore
from pipeline.tokenizer import Tokenizer

CELLS = 2048
CHUNK = 64
RANDOM_READS = 256
DECODED = 32  # masks decoded for each precision

# Cells a chunk, and chunks gathered in a shard.
LAYOUTS = ((1, None), (1, 512), (8, 512), (16, None), (64, None), (64, 512), (256, None))
_SHUFFLED = BloscCodec(cname="zstd", clevel=5, shuffle="shuffle")
LATENT_CODECS: dict[str, Any] = {
    "none": (),
    "zstd 1": ZstdCodec(level=1),
    "zstd 9": ZstdCodec(level=9),
    "blosc lz4, shuffled": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
    "blosc zstd, shuffled": _SHUFFLED,
}
MASK_CODECS: dict[str, Any] = {
    "none": (),
    "zstd 1": ZstdCodec(level=1),
    "zstd 3": ZstdCodec(level=3),
    "zstd 9": ZstdCodec(level=9),
    "blosc lz4, bits shuffled": BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
}
# Bits of the significand that are kept; float16 has ten.
KEPT_BITS = (7, 5, 3)


def bench_storage(store: LatentStore, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Some cells of the train split written and read again in other ways, through plain zarr.

    returns  a row for each way: what (layout, latent codec, mask codec or precision), way,
             bytes_per_cell, sequential_per_s (cells, read in runs of 512), for layouts random_per_s
             (cells, one by one), for precisions dsc of the decoded true mask latents (fraction)
    """
    latents = load_latents(store, "train")
    assert latents.mask_bits is not None
    images = latents.image_mean.flatten(0, 1)[:CELLS].numpy()
    masks = latents.unpack(latents.mask_bits.flatten(0, 1)[:CELLS]).numpy()
    rows = []
    for chunk, shard in LAYOUTS:
        way = f"chunk {chunk}" + (f" in shards of {shard}" if shard else "")
        row = _written(images, chunk=chunk, shard=shard, random=True)
        rows.append({"what": "layout", "way": way, **row})
    for what, array, codecs in (
        ("latent codec", images, LATENT_CODECS),
        ("mask codec", masks, MASK_CODECS),
    ):
        for way, codec in codecs.items():
            rows.append({"what": what, "way": way, **_written(array, codec=codec)})
    dsc_of = _dsc_by_rounding(latents, tokenizer)
    for way, rounded in precisions(images).items():
        codec = _SHUFFLED if "bits" in way else ()
        written = _written(rounded, codec=codec)
        rows.append({"what": "precision", "way": way, **written, "dsc": dsc_of[way]})
    return rows


def precisions(latents: np.ndarray) -> dict[str, np.ndarray]:
    """The latents as each precision keeps them."""
    half = latents.astype(np.float16)
    kept: dict[str, np.ndarray] = {"float32": latents.astype(np.float32), "float16": half}
    for bits in KEPT_BITS:
        rounded = np.asarray(BitRound(bits).encode(half.copy()))
        kept[f"float16, {bits} bits"] = rounded.view(np.float16).reshape(latents.shape)
    return kept


def _dsc_by_rounding(latents: Latents, tokenizer: Tokenizer) -> dict[str, float]:
    """Mean DSC of D(E(M)) with E(M) kept in each precision."""
    assert latents.mask_bits is not None
    mask = latents.unpack(latents.mask_bits[0, :DECODED])
    pixels = (mask[:, None] * 2.0 - 1).expand(-1, 3, -1, -1)
    exact = torch.cat([tokenizer.encode(some)[0] for some in pixels.split(2)]).cpu().numpy()
    decoder = MaskDecoder(tokenizer)
    found = {}
    for way, kept in precisions(exact).items():
        raw = torch.from_numpy(kept).to(tokenizer.device)
        z_mask = model_latent(raw, latents.scaling_factor, latents.shift_factor)
        found[way] = float(score(decoder.masks(z_mask), mask)["dsc"].mean())
    return found


def _written(
    array: np.ndarray,
    *,
    chunk: int = CHUNK,
    shard: int | None = None,
    codec: Any = (),
    random: bool = False,
) -> dict[str, float]:
    """Bytes and speed of an array of cells, written and read back by zarr, checksums on."""
    cell = array.shape[1:]
    compressors = (*((codec,) if codec else ()), Crc32cCodec())
    with TemporaryDirectory() as folder:
        written = zarr.create_array(
            folder,
            shape=array.shape,
            chunks=(chunk, *cell),
            shards=(shard, *cell) if shard else None,
            dtype=array.dtype,
            compressors=compressors,
        )
        written[:] = array
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        row = {"bytes_per_cell": sum(path.stat().st_size for path in files) / len(array)}
        runs = [slice(start, start + 512) for start in range(0, len(array), 512)]
        row["sequential_per_s"] = len(array) / _seconds_to_read(written, runs)
        if random:
            places = np.random.default_rng(0).integers(len(array), size=RANDOM_READS).tolist()
            row["random_per_s"] = RANDOM_READS / _seconds_to_read(written, places)
    return row


def _seconds_to_read(array: zarr.Array[Any], selections: Iterable[Any]) -> float:
    """The second of two readings: the first fills the page cache."""
    selections = list(selections)
    for _ in range(2):
        started = time.perf_counter()
        for selection in selections:
            array[selection]
        seconds = time.perf_counter() - started
    return seconds
