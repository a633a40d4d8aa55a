"""A chunk's bytes to its cells by the codecs of its array, CRC-32C checked, without an event loop.

zarr schedules each read on a loop of its own, which takes longer than to read a shard of latents.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.codecs.numcodecs import PackBits
from zarr.errors import ZarrUserWarning

_DECODERS = {
    Crc32cCodec: numcodecs.CRC32C(),
    ZstdCodec: numcodecs.Zstd(),
    PackBits: numcodecs.PackBits(),
}


@contextmanager
def packed_bits() -> Iterator[type[PackBits]]:
    """The codec of masks, eight pixels a byte, to be used or met in the block without a warning.

    zarr-python brings the codec, and warns that other implementations may not have it. Masks are
    read four times as fast as when each pixel is a byte before it is compressed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in", ZarrUserWarning)
        yield PackBits


def decode_chunk(content: bytes, array: zarr.Array[Any]) -> np.ndarray:
    """The cells in a chunk file of an array that is chunked along its second axis alone.

    returns  [chunk length, …], those beyond the array's end too
    raises   whatever its codecs raise when the bytes are not those that were written
    """
    body = _decoded(content, (*array.filters, *array.compressors))
    return np.frombuffer(body, array.dtype.newbyteorder("<")).reshape(array.chunks[1:])


def decode_bits(content: bytes, array: zarr.Array[Any]) -> np.ndarray:
    """As `decode_chunk`, of masks: [chunk length, H, ⌈W/8⌉] uint8, the first pixel in the high bit.

    Rows of whole bytes are taken as they are stored.
    """
    *rows, width = array.chunks[1:]
    if width % 8:
        return np.packbits(decode_chunk(content, array), axis=-1)
    body = _decoded(content, array.compressors)
    return np.frombuffer(body, np.uint8, offset=1).reshape(*rows, width // 8)  # 1: padding, none


def _decoded(content: bytes, codecs: tuple[Any, ...]) -> Any:
    body: Any = content
    for codec in reversed(codecs):
        body = _DECODERS[type(codec)].decode(body)
    return body
