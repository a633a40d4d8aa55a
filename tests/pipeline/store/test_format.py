"""pipeline.store.format: a chunk decoded by ourselves is what zarr decodes, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, GzipCodec, ZstdCodec
from zarr.codecs.numcodecs import PackBits

from pipeline.store.format import decode_bits, decode_chunk, packed_bits

CELLS = np.random.default_rng(0).standard_normal((1, 5, 2, 3)).astype(np.float16)


def written(place: Path, *codecs: object) -> tuple[bytes, zarr.Array]:
    """The second of two chunks of three cells, one of them beyond the end, and its array."""
    array = zarr.create_array(
        str(place), data=CELLS, chunks=(1, 3, 2, 3), compressors=codecs, fill_value=7
    )
    return (place / "c/0/1/0/0").read_bytes(), array


@pytest.mark.parametrize("codecs", [(Crc32cCodec(),), (ZstdCodec(level=3), Crc32cCodec())])
def test_cells_are_those_that_zarr_was_given(tmp_path: Path, codecs: tuple[object, ...]) -> None:
    cells = decode_chunk(*written(tmp_path / "a", *codecs))
    assert cells.dtype == np.float16
    np.testing.assert_array_equal(cells, [*CELLS[0, 3:], np.full((2, 3), 7)])


@pytest.mark.parametrize("codecs", [(Crc32cCodec(),), (ZstdCodec(level=3), Crc32cCodec())])
def test_whichever_bit_is_flipped_and_byte_is_lost_it_raises(
    tmp_path: Path, codecs: tuple[object, ...]
) -> None:
    content, array = written(tmp_path / "a", *codecs)
    for bit in range(8 * len(content)):
        harmed = bytearray(content)
        harmed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RuntimeError, match="checksum do not match"):
            decode_chunk(bytes(harmed), array)
    for length in range(len(content)):
        with pytest.raises((RuntimeError, ValueError), match="checksum"):
            decode_chunk(content[:length], array)


def test_codec_that_a_store_does_not_use_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="GzipCodec"):
        decode_chunk(*written(tmp_path / "a", GzipCodec()))


@pytest.mark.parametrize("width", [16, 11])
def test_masks_are_those_that_zarr_was_given_as_pixels_and_as_bits(
    tmp_path: Path, width: int
) -> None:
    masks = np.random.default_rng(0).random((1, 5, 3, width)) > 0.5
    with packed_bits():
        array = zarr.create_array(
            str(tmp_path / "a"),
            data=masks,
            chunks=(1, 3, 3, width),
            filters=(PackBits(),),
            compressors=(ZstdCodec(level=9), Crc32cCodec()),
            fill_value=False,
        )
    content = (tmp_path / "a/c/0/1/0/0").read_bytes()
    expected = np.concatenate([masks[0, 3:], np.zeros((1, 3, width), bool)])
    pixels = decode_chunk(content, array)
    assert pixels.dtype == bool
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(decode_bits(content, array), np.packbits(expected, axis=-1))
    for bit in range(8 * len(content)):
        harmed = bytearray(content)
        harmed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RuntimeError, match="checksum do not match"):
            decode_bits(bytes(harmed), array)
