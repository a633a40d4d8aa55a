"""pipeline.store.copy: the same cells elsewhere, compressed, resumed, never of two stores."""

from pathlib import Path

import numpy as np
import pytest
import small
import zarr

from cli.copy import command
from lmm.latents import load_latents
from pipeline.encode import encode
from pipeline.errors import ArtefactError, UsageError
from pipeline.manifest import Manifest
from pipeline.store import open_store
from pipeline.store.copy import copy_store
from pipeline.store.format import LATENT_CODECS
from pipeline.store.verify import verify
from pipeline.tokenizer import Tokenizer


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "copy.zarr")


@small.ZARR_WARNS_OF_PACKED_BITS
@pytest.mark.parametrize("codec", LATENT_CODECS)
def test_a_copy_holds_the_same_cells_and_has_an_equal_receipt(
    whole: Manifest, url: str, target: str, codec: str
) -> None:
    copy = copy_store(open_store(url), target, codec)
    assert copy.receipt() == open_store(url).receipt()
    assert verify(copy) == (18, [])
    plain, packed = (zarr.open_group(path, mode="r") for path in (url, target))
    for name in ("image_mean", "image_std", "mask_mean", "mask"):
        np.testing.assert_array_equal(plain[name][:], packed[name][:])
    there, here = (load_latents(open_store(path), "train") for path in (url, target))
    assert np.array_equal(there.image_mean, here.image_mean)


def test_the_command_offers_every_codec() -> None:
    choices = next(p.type.choices for p in command.params if p.name == "codec")  # type: ignore[attr-defined]
    assert list(choices) == list(LATENT_CODECS)


def test_a_copy_that_was_cut_short_goes_on_where_it_stopped(
    whole: Manifest, url: str, target: str
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_store(open_store(url), target, "lz4", stop)
    with pytest.raises(ArtefactError, match="not finished"):
        open_store(target).require_complete()
    chunk = Path(target) / "image_mean/c/0/0/0/0/0"
    before = chunk.stat().st_mtime_ns
    copy = copy_store(open_store(url), target, "lz4")
    assert copy.receipt() == open_store(url).receipt()
    assert chunk.stat().st_mtime_ns == before


def test_a_store_that_left_samples_behind_is_copied_without_them(
    whole: Manifest, url: str, target: str, tokenizer: Tokenizer
) -> None:
    rest = small.without(whole, "benign (1)", "malignant (2)")
    encode(rest, url, tokenizer, views=2, size=small.SIZE_PX)
    copy = copy_store(open_store(url), target, "none")
    assert copy.receipt() == open_store(url).receipt()
    assert verify(copy) == (8, [])
    assert encode(rest, target, tokenizer, views=2, size=small.SIZE_PX).encoded == 0


def test_a_compressed_store_grows_compressed(
    whole: Manifest, url: str, target: str, tokenizer: Tokenizer
) -> None:
    rest = small.without(whole, "benign (2)")
    encode(rest, url, tokenizer, views=3, size=small.SIZE_PX)
    copy_store(open_store(url), target, "lz4")
    assert encode(whole, target, tokenizer, views=3, size=small.SIZE_PX).encoded == 3
    encode(whole, url, tokenizer, views=3, size=small.SIZE_PX)
    assert open_store(target).receipt() == open_store(url).receipt()
    assert "blosc" in (Path(target) / "image_mean" / "zarr.json").read_text()


def test_a_damaged_cell_is_not_copied(whole: Manifest, url: str, target: str) -> None:
    """Through zarr, so that its chunk is whole."""
    zarr.open_group(url)["mask_mean"][1, 3, 0, 0, 0] = 0.5
    with pytest.raises(ArtefactError, match="mask_mean/c/1/1/0/0/0 holds something else"):
        copy_store(open_store(url), target, "none")
    with pytest.raises(ArtefactError, match="not finished"):
        open_store(target).require_complete()


def test_something_else_at_the_target_is_left_as_it_is(
    whole: Manifest, url: str, target: str, tokenizer: Tokenizer
) -> None:
    copy_store(open_store(url), target, "none")
    receipt = open_store(target).receipt()
    for codec, views in (("lz4", 3), ("none", 2)):
        encode(whole, url, tokenizer, views=views, size=small.SIZE_PX)
        with pytest.raises(UsageError, match=f"is no copy of .* with codec {codec}"):
            copy_store(open_store(url), target, codec)
    assert open_store(target).receipt() == receipt
