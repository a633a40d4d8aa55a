"""What is in a store: its arrays, how their chunks are stored, and how chunks are decoded again.

A cell is one view of one sample. A **shard** is one view of some consecutive samples, the same for
every array: exactly one zarr chunk, hence one file, in each. What zarr itself calls shards, many
chunks in one file, is not used.

Chunks are decoded here and not by zarr, which schedules each read on an event loop of its own; that
takes longer than to read a shard of latents. Once zarr's own synchronous codec pipeline is as fast,
`decode_chunk` and `decode_bits` can go. A codec is added in `_DECODERS` and `array_layouts`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec
from zarr.codecs.numcodecs import PackBits
from zarr.errors import UnknownCodecError, ZarrUserWarning

from pipeline.errors import ArtefactError

FORMAT_VERSION = 4
LATENT_ARRAYS = ("image_mean", "image_std", "mask_mean")
DATA_ARRAYS = (*LATENT_ARRAYS, "mask")
CELL_ARRAYS = ("checksum", "key")  # what is kept of a cell beside its data
KEY_BYTES = 16
CHECKSUM_BYTES = 8
GROUP_FILE, SAMPLES_FILE, RECEIPT_FILE = "zarr.json", "samples.parquet", "receipt.json"

# How latents are compressed, by their name in `gms-lmm copy --codec`. Bits of equal weight are put
# side by side, which is what makes latents compress; of what does, lz4 is the fastest to read.
LATENT_CODECS: Mapping[str, tuple[BloscCodec, ...]] = {
    "none": (),
    "lz4": (BloscCodec(cname="lz4hc", clevel=5, shuffle="bitshuffle", typesize=2),),
}

_DECODERS = {
    Crc32cCodec: numcodecs.CRC32C(),
    BloscCodec: numcodecs.Blosc(),
    ZstdCodec: numcodecs.Zstd(),
    PackBits: numcodecs.PackBits(),
}
_BYTES = (BytesCodec(endian="little"), BytesCodec(endian=None))  # None: of one byte each


@dataclass(frozen=True)
class ArrayLayout:
    """One array [view, sample, *cell]: its name, and what zarr is told of it."""

    name: str
    cell: tuple[int, ...]
    dimensions: tuple[str, ...]  # of a cell
    dtype: str
    fill_value: Any  # what others read of a cell that is absent
    compressors: tuple[Any, ...]
    filters: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)

    def create(self, group: zarr.Group, views: int, samples: int, shard_samples: int) -> None:
        """Lay the array out in a group, one chunk a shard, without data."""
        group.create_array(
            self.name,
            shape=(views, samples, *self.cell),
            chunks=(1, shard_samples, *self.cell),
            dtype=self.dtype,
            dimension_names=["view", "sample", *self.dimensions],
            filters=self.filters,
            compressors=self.compressors,
            fill_value=self.fill_value,
            attributes=self.attributes,
        )


def array_layouts(
    latent_shape: tuple[int, int, int], size: int, *, posterior: bool, codec: str
) -> list[ArrayLayout]:
    """Every array of a store; to be called, and its result used, inside `packed_bits()`.

    latent_shape  (C, h, w) of one latent
    size          side of a mask, px
    posterior     whether the tokenizer gives a standard deviation, so that there is image_std
    codec         of the latents, one of LATENT_CODECS
    """
    latents = [name for name in LATENT_ARRAYS if name != "image_std" or posterior]
    checked = (Crc32cCodec(),)
    return [
        *(
            ArrayLayout(
                name,
                latent_shape,
                ("channel", "y", "x"),
                "float16",
                fill_value=np.float16("nan"),  # never a plausible zero
                compressors=(*LATENT_CODECS[codec], *checked),
                attributes={"units": "raw tokenizer units, scaling factor not applied"},
            )
            for name in latents
        ),
        ArrayLayout(
            "mask",
            (size, size),
            ("row", "column"),
            "bool",
            fill_value=False,
            compressors=(ZstdCodec(level=9), Crc32cCodec()),
            filters=(PackBits(),),
        ),
        ArrayLayout(
            "checksum", (len(latents) + 1, CHECKSUM_BYTES), ("array", "byte"), "uint8", 0, checked
        ),
        ArrayLayout("key", (KEY_BYTES,), ("byte",), "uint8", 0, checked),
    ]


def latent_codec(array: zarr.Array[Any]) -> str:
    """Which of LATENT_CODECS an array of latents is stored with."""
    return "lz4" if any(isinstance(codec, BloscCodec) for codec in array.compressors) else "none"


def open_arrays(group: zarr.Group, url: str) -> dict[str, zarr.Array[Any]]:
    """The arrays of a store's group by name, in the order of a cell's checksums.

    raises  ArtefactError naming the codec that cannot be decoded here
    """
    arrays: dict[str, zarr.Array[Any]] = {}
    with packed_bits():
        for name in (*DATA_ARRAYS, *CELL_ARRAYS):
            try:
                array = group.get(name)
            except UnknownCodecError as error:  # to zarr too
                raise _unknown_codec(url, name, str(error).rpartition(":")[2].strip()) from error
            if isinstance(array, zarr.Array):
                _require_known_codecs(array, url, name)
                # A shard that happens to equal the fill value must still be a file: a missing file
                # means missing data. zarr does not keep this setting with the array.
                arrays[name] = array.with_config({"write_empty_chunks": True})
    return arrays


def _require_known_codecs(array: zarr.Array[Any], url: str, name: str) -> None:
    for codec in array.metadata.codecs:  # type: ignore[union-attr]
        if type(codec) not in _DECODERS and codec not in _BYTES:
            raise _unknown_codec(url, name, repr(codec.to_dict()["name"]))


def _unknown_codec(url: str, name: str, codec: str) -> ArtefactError:
    return ArtefactError(
        f"{url}: array {name} is stored with codec {codec}, which this version cannot decode",
        "read it with the gms-lmm that wrote it, or encode the data set into a new store",
    )


@contextmanager
def packed_bits() -> Iterator[None]:
    """Let the codec of masks, eight pixels a byte, be used or met in the block without a warning.

    zarr-python brings the codec, and warns that other implementations may not have it. Masks are
    read four times as fast as when each pixel is a byte before it is compressed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in", ZarrUserWarning)
        yield


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
    if width % 8 or [type(codec) for codec in array.filters] != [PackBits]:
        return np.packbits(decode_chunk(content, array), axis=-1)
    body = _decoded(content, array.compressors)
    return np.frombuffer(body, np.uint8, offset=1).reshape(*rows, width // 8)  # 1: padding, none


def _decoded(content: bytes, codecs: tuple[Any, ...]) -> Any:
    body: Any = content
    for codec in reversed(codecs):
        body = _DECODERS[type(codec)].decode(body)
    return body
