"""What a store's layout, codec and precision cost and give: its cells rewritten in each variant."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numcodecs import BitRound
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from lmm.bench.turns import seconds_of
from lmm.decoder import MaskDecoder
from lmm.metrics import score
from pipeline.pixels import mask_pixels
from pipeline.store import LatentStore
from pipeline.telling import Progress
from pipeline.tokenizer import Tokenizer, load_tokenizer_of

_ROUNDS = 5
_DECODED = 32  # masks
_AT_RANDOM = 64  # cells
_SHARD = 64


@dataclass(frozen=True)
class Variant:
    """One way to store cells: what is done to them first, how zarr chunks and compresses them."""

    name: str
    chunk: int = _SHARD
    shard: int | None = None
    codecs: tuple[Any, ...] = ()
    then: Callable[[np.ndarray], np.ndarray] | None = None


def _rounded(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """To the nearest number with so many bits of mantissa; compressors find the zeros behind."""
    codec = BitRound(keepbits=bits)
    return lambda cells: codec.decode(codec.encode(cells)).reshape(cells.shape)


_packed = partial(np.packbits, axis=-1)
_LZ4 = BloscCodec(cname="lz4", shuffle="noshuffle", typesize=2)
_LZ4_BITS = BloscCodec(cname="lz4", shuffle="bitshuffle", typesize=2)
_ZSTD_BYTES = BloscCodec(cname="zstd", shuffle="shuffle", typesize=2)
_ZSTD_BITS = BloscCodec(cname="zstd", shuffle="bitshuffle", typesize=2)
LATENTS = (
    *(Variant(f"chunk {n}", n) for n in (1, 8, 64, 512)),
    *(Variant(f"chunk {n}, shard 64", n, shard=_SHARD) for n in (1, 8)),
    *(Variant(f"zstd {n}", codecs=(ZstdCodec(level=n),)) for n in (-7, 1, 3, 9)),
    Variant("lz4", codecs=(_LZ4,)),
    Variant("lz4, bits shuffled", codecs=(_LZ4_BITS,)),
    Variant("zstd, bytes shuffled", codecs=(_ZSTD_BYTES,)),
    Variant("zstd, bits shuffled", codecs=(_ZSTD_BITS,)),
    *(Variant(f"mantissa {n} bits", codecs=(_ZSTD_BITS,), then=_rounded(n)) for n in (7, 5, 3)),
)
MASKS = (
    *(Variant(f"mask: zstd {n}", codecs=(ZstdCodec(level=n),)) for n in (1, 3, 9)),
    Variant("mask: lz4, bits shuffled", codecs=(_LZ4_BITS,)),
    *(Variant(f"mask: bits, zstd {n}", codecs=(ZstdCodec(level=n),), then=_packed) for n in (3, 9)),
)


def bench_storage(
    store: LatentStore,
    device: torch.device,
    *,
    samples: int,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Write the clean cells of a store anew in each variant, read them with zarr, decode some.

    Every chunk has a CRC-32C, and is read warm, from the page cache; the variants take turns, and
    the median of their rounds counts. Stored now are latents as
    `chunk 64` and masks as `mask: bits, zstd 9`. `float32` holds mask latents encoded anew in fp32.

    samples  how many of the store's samples, from the first on
    returns  for each variant: variant, bytes_per_cell (of image and mask latent, or of the mask);
             cells_per_s, all in order; random_per_s, one at a time; dsc, the mean over the first 32
             samples of their decoded mask latents against their masks, None of the masks themselves
    """
    blocks = range(min(store.blocks(), -(-samples // store.shard_samples)))
    image, mask_mean, masks = (
        np.concatenate([store.read_shard(name, 0, block) for block in blocks])[:samples]
        for name in ("image_mean", "mask_mean", "mask")
    )
    latents = np.stack([image, mask_mean], axis=1)
    decoder = MaskDecoder(load_tokenizer_of(store.tokenizer, device))
    exact = latents.astype(np.float32)
    exact[:_DECODED, 1] = _encoded(decoder.tokenizer, masks[:_DECODED])
    work = [(variant, latents) for variant in LATENTS] + [(Variant("float32"), exact)]
    work += [(variant, masks) for variant in MASKS]
    with tempfile.TemporaryDirectory() as folder:
        arrays = [
            _written(Path(folder, str(place)), variant, cells)
            for place, (variant, cells) in enumerate(work)
        ]
        rounds = []
        for step in range(_ROUNDS + 1):  # the first warms the page cache
            rounds.append([(seconds_of(_in_order(a)), seconds_of(_at_random(a))) for a in arrays])
            if progress:
                progress(step + 1, _ROUNDS + 1)
        times = np.median(rounds[1:], axis=0)
        sizes = [_bytes_of(Path(folder, str(place))) for place in range(len(work))]
        decoded = [np.asarray(array[:_DECODED]) for array in arrays[: -len(MASKS)]]
    scores = _scores(decoder, decoded, masks[:_DECODED])
    count = len(masks)
    return [
        {
            "variant": variant.name,
            "bytes_per_cell": size / count,
            "cells_per_s": float(count / in_order_s),
            "random_per_s": float(_AT_RANDOM / random_s),
            "dsc": dsc,
        }
        for (variant, _), size, (in_order_s, random_s), dsc in zip(
            work, sizes, times, [*scores, *[None] * len(MASKS)], strict=True
        )
    ]


def _encoded(tokenizer: Tokenizer, masks: np.ndarray) -> np.ndarray:
    mask_pm1 = mask_pixels(torch.from_numpy(masks).to(tokenizer.device))
    return torch.cat([tokenizer.encode(one)[0] for one in mask_pm1.split(1)]).cpu().numpy()


def _written(folder: Path, variant: Variant, cells: np.ndarray) -> zarr.Array[Any]:
    cells = variant.then(cells) if variant.then else cells
    shape = cells.shape[1:]
    array = zarr.create_array(
        str(folder),
        shape=cells.shape,
        dtype=cells.dtype,
        chunks=(variant.chunk, *shape),
        shards=None if variant.shard is None else (variant.shard, *shape),
        compressors=(*variant.codecs, Crc32cCodec()),
    )
    array[:] = cells
    return array


def _in_order(array: zarr.Array[Any]) -> Callable[[], None]:
    step = max(_SHARD, array.chunks[0])

    def read() -> None:
        for start in range(0, array.shape[0], step):
            array[start : start + step]

    return read


def _at_random(array: zarr.Array[Any]) -> Callable[[], None]:
    drawn = np.random.default_rng(0).integers(0, array.shape[0], _AT_RANDOM).tolist()

    def read() -> None:
        for place in drawn:
            array[place]

    return read


def _bytes_of(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]
    return sum(file.stat().st_size for file in files)


def _scores(decoder: MaskDecoder, variants: list[np.ndarray], masks: np.ndarray) -> list[float]:
    """Mean DSC of each variant's mask latents, decoded, against the masks."""
    known: dict[bytes, float] = {}  # a codec that loses nothing need not be decoded again
    for read in variants:
        if read.tobytes() not in known:
            z_mask = decoder.scaled(torch.from_numpy(read[:, 1]).to(decoder.tokenizer.device))
            known[read.tobytes()] = float(score(decoder.masks(z_mask), masks)["dsc"].mean())
    return [known[read.tobytes()] for read in variants]
