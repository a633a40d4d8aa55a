"""Where tests find the real data sets, weights and vectors, and a small store of their own."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))

import peers
import small
import torch

import lmm.student.file
from lmm.baseline.pixels import ManifestImages, open_manifest
from lmm.baseline.settings import NETWORKS, BaselineSettings
from lmm.baseline.train import train_baseline
from lmm.run import Run, open_run
from lmm.settings import TrainSettings
from lmm.train import train
from pipeline.archive import build_manifest
from pipeline.encode import encode
from pipeline.manifest import write_manifest
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from object_store import Server

ASSETS = Path(os.environ.get("GMS_LMM_ASSETS", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with data/, splits/, weights/ and vectors/; skips where it is absent."""
    if not ASSETS.is_dir():
        pytest.skip(
            f"no assets at {ASSETS}: set GMS_LMM_ASSETS to a folder with data/, weights/, vectors/"
        )
    return ASSETS


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small AutoencoderKL with random weights, in diffusers' format."""
    folder = tmp_path_factory.mktemp("weights") / "kl"
    small.small_kl().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(kl_folder: Path) -> Tokenizer:
    """The small AutoencoderKL, loaded; never changed."""
    return load_tokenizer(str(kl_folder))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Six samples in BUSI's layout, of the test's own, to be changed."""
    return small.write_busi(tmp_path / "raw")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where a store may be written."""
    return str(tmp_path / "store.zarr")


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory, kl_folder: Path) -> str:
    """Six samples in train, val and test, three views, with a posterior; never written to."""
    folder = tmp_path_factory.mktemp("store")
    root = small.write_busi(folder / "raw")
    manifest = build_manifest(root, "busi", split=(0.7, 0.3), val_fraction=0.25).manifest
    url = str(folder / "small.zarr")
    encode(manifest, url, load_tokenizer(str(kl_folder)), views=3, size=small.SIZE_PX)
    return url


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, small_store: str) -> Run:
    """A model trained for two epochs on the small store; never written to."""
    path = tmp_path_factory.mktemp("run") / "small"
    settings = TrainSettings(loss="lm", epochs=2, batch_size=1, width=16)
    train(open_store(small_store), path, settings, device=torch.device("cpu"))
    return open_run(path)


@pytest.fixture(scope="session")
def small_manifest(tmp_path_factory: pytest.TempPathFactory, small_store: str) -> ManifestImages:
    """What the small store was made from, in a file of its own."""
    path = tmp_path_factory.mktemp("manifest") / "small.parquet"
    write_manifest(open_store(small_store).source(), path)
    return open_manifest(path, small.SIZE_PX)


@pytest.fixture(scope="session")
def small_peer(tmp_path_factory: pytest.TempPathFactory, small_manifest: ManifestImages) -> Run:
    """A baseline trained for four epochs on the small manifest; never written to."""
    path = tmp_path_factory.mktemp("run") / "peer"
    settings = BaselineSettings(size=small.SIZE_PX, views=3, epochs=4, batch_size=1, val_every=2)
    train_baseline(small_manifest, path, settings, device=torch.device("cpu"))
    return open_run(path)


@pytest.fixture
def store_copy(small_store: str, tmp_path: Path) -> Path:
    """A copy of the small store, to be damaged."""
    return Path(shutil.copytree(small_store, tmp_path / "copy.zarr"))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """A server of S3, which s3:// leads to, with an empty `s3://bucket`."""
    from object_store import serving

    with serving(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _little_teaching() -> Iterator[None]:
    """Students of the suite are taught on a few latents: what they decode to is not its subject."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmm.student.file, "FIRST_PAIRS", 32)
        patch.setattr(lmm.student.file, "FIRST_LESSONS", 20)
        yield


@pytest.fixture(scope="session", autouse=True)
def _little_peers() -> Iterator[None]:
    """Networks of the suite are small; `peers.PUBLISHED` has them as they are."""
    with pytest.MonkeyPatch.context() as patch:
        for name, network in peers.SMALL.items():
            patch.setitem(NETWORKS, name, network)
        yield
