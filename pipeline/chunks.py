"""A chunk's bytes to its cells by the codecs of its array, CRC-32C checked, without an event loop.

zarr schedules each read on a loop of its own, which takes longer than to read a shard of latents.
"""

from typing import Any

import numpy as np
import zarr
from numcodecs import CRC32C, Zstd
from zarr.codecs import Crc32cCodec, ZstdCodec

_DECODERS = {Crc32cCodec: CRC32C(), ZstdCodec: Zstd()}


def decode_chunk(content: bytes, array: zarr.Array[Any]) -> np.ndarray:
    """The cells in a chunk file of an array that is chunked along its second axis alone.

    returns  [chunk length, …], those beyond the array's end too
    raises   whatever its codecs raise when the bytes are not those that were written
    """
    body: Any = content
    for codec in reversed(array.compressors):
        body = _DECODERS[type(codec)].decode(body)
    return np.frombuffer(body, array.dtype.newbyteorder("<")).reshape(array.chunks[1:])
