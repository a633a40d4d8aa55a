"""The latent store: a zarr v3 group written once and read many times, cell by keyed cell.

A cell is one view of one sample. A shard is one view of SHARD_SAMPLES consecutive samples: one
zarr chunk in each array, written by one writer, invalidated before and keyed after its data.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.augment import PARAMETERS, ViewPolicy, draw_views
from pipeline.errors import ArtefactError, UsageError
from pipeline.manifest import Manifest

FORMAT_VERSION = 1
# Raised whenever the same inputs would give other stored bytes; it enters every key.
ENCODER_VERSION = 1
# One chunk a shard: 64 cells are 0.4 MB of latents, large enough to stream, small enough to lose.
SHARD_SAMPLES = 64
KEY_BYTES = 16

_SOFTWARE = ("gms-lmm", "torch", "diffusers", "kornia", "zarr", "pillow")
_LATENT_NAMES = ("image_mean", "image_std", "mask_mean")
_OWN_NAMES = {"zarr.json", "samples.parquet", *_LATENT_NAMES, "mask", "key"}
_LATENT_CODECS = (Crc32cCodec(),)  # latents do not compress: measured 1.08×
_MASK_CODECS = (ZstdCodec(level=3), Crc32cCodec())


class LatentStore:
    """An open store.

    samples     the manifest's rows in array order; a sample that left the manifest keeps its place
                with a null split until it is pruned
    attributes  format_version, tokenizer, preprocessing, views, view_policy, seed, manifest_digest,
                root (folder of the images), software
    """

    def __init__(self, url: str, mode: str) -> None:
        self.url = url
        self.fs, self.root = fsspec.core.url_to_fs(url)
        if not store_exists(url):
            raise ArtefactError(
                f"no latent store at {url}", f"gms-lmm encode manifest.parquet {url} --tokenizer …"
            )
        self.group = zarr.open_group(url, mode=mode)  # type: ignore[arg-type]
        self.attributes: dict[str, Any] = dict(self.group.attrs)
        found = self.attributes.get("format_version")
        if found != FORMAT_VERSION:
            raise ArtefactError(
                f"{url} has store format {found}, this version reads format {FORMAT_VERSION}",
                "encode the data set into a new store",
            )
        self.samples = pl.read_parquet(io.BytesIO(self.fs.cat_file(f"{self.root}/samples.parquet")))

    @property
    def name(self) -> str:
        """Last part of the URL, without `.zarr`: what files made from the store are called."""
        return str(self.root).rstrip("/").rpartition("/")[2].removesuffix(".zarr")

    def source(self) -> Manifest:
        """The live samples as a manifest, to read the images that were encoded once more."""
        attributes = self.attributes
        labels = attributes["preprocessing"]["mask_values"] == "labels"
        return Manifest(self.samples.drop_nulls("split"), Path(attributes["root"]), "store", labels)

    @property
    def views(self) -> int:
        return int(self.attributes["views"])

    @property
    def size(self) -> int:
        """Side of image and mask, in px."""
        return int(self.attributes["preprocessing"]["size"])

    @property
    def tokenizer(self) -> dict[str, Any]:
        return dict(self.attributes["tokenizer"])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        shape = self.array("image_mean").shape
        return (shape[2], shape[3], shape[4])

    @property
    def latent_arrays(self) -> list[str]:
        return [name for name in _LATENT_NAMES if name in self.group]

    def array(self, name: str) -> zarr.Array[Any]:
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        # A shard that happens to equal the fill value must still be a file: a missing file means
        # missing data. zarr does not keep this setting with the array.
        return array.with_config({"write_empty_chunks": True})

    @cached_property
    def live(self) -> np.ndarray:
        """Which rows of `samples` belong to the manifest; bool [samples]."""
        live: np.ndarray = self.samples["split"].is_not_null().to_numpy()
        return live

    @cached_property
    def plan(self) -> pl.DataFrame:
        """The view plan of every cell; see `draw_views`."""
        policy = ViewPolicy(**self.attributes["view_policy"])
        ids = self.samples["sample_id"].to_list()
        return draw_views(ids, self.views, self.attributes["seed"], policy)

    @cached_property
    def wanted_keys(self) -> np.ndarray:
        """The key that each cell has when it holds what it should; uint8 [view, sample, 16]."""
        return cell_keys(self.attributes, self.samples, self.plan, self.views)

    def stored_keys(self) -> np.ndarray:
        """The keys as they stand; uint8 [view, sample, 16], all zero where nothing is stored."""
        return self._read("key", (slice(self.views), slice(len(self.samples))), "a chunk of key")

    def present(self) -> np.ndarray:
        """Which cells hold what the manifest and settings ask for; bool [view, sample]."""
        matching = (self.stored_keys() == self.wanted_keys).all(axis=2)
        return np.asarray(matching & self.live)

    @cached_property
    def _files(self) -> frozenset[str]:
        return frozenset(path[len(self.root) + 1 :] for path in self.fs.find(self.root))

    def read_shard(self, name: str, view: int, block: int) -> np.ndarray:
        """One shard of one array: [≤ SHARD_SAMPLES, …].

        raises  ArtefactError naming the chunk when it is missing or fails its checksum: zarr
                would give the fill value for a missing one
        """
        chunk = f"{name}/c/{view}/{block}" + "/0" * (self.array(name).ndim - 2)
        if chunk not in self._files:
            raise ArtefactError(f"{self.url}: chunk {chunk} is missing", self._mend)
        rows = slice(block * SHARD_SAMPLES, min((block + 1) * SHARD_SAMPLES, len(self.samples)))
        return self._read(name, (view, rows), f"chunk {chunk}")

    def _read(self, name: str, selection: Any, what: str) -> np.ndarray:
        try:
            data: np.ndarray = self.array(name)[selection]  # type: ignore[assignment]
        except Exception as error:  # each codec raises a type of its own on damaged bytes
            raise ArtefactError(f"{self.url}: {what} is damaged: {error}", self._mend) from error
        return data

    @property
    def _mend(self) -> str:
        return f"encode the data set into a new store; {self.url} cannot be trusted any more"

    def blocks(self) -> int:
        """Shards along the sample axis."""
        return -(-len(self.samples) // SHARD_SAMPLES)

    def receipt(self) -> dict[str, Any] | None:
        """The receipt of a finished store, or None while it is being built."""
        path = f"{self.root}/receipt.json"
        return json.loads(self.fs.cat_file(path)) if self.fs.exists(path) else None

    def require_complete(self) -> None:
        """Raise ArtefactError unless every cell is present and the store has its receipt."""
        missing = int((~self.present()[:, self.live]).sum())
        if missing or self.receipt() is None:
            raise ArtefactError(
                f"{self.url} is not finished: {missing} of {self.views * int(self.live.sum())} "
                f"cells are missing{'' if missing else ', only the receipt'}",
                "run the gms-lmm encode command again: it goes on where it stopped",
            )

    def write_file(self, name: str, content: bytes) -> None:
        """Replace a file beside the arrays as a whole: readers see the old one or the new one."""
        path, partial = f"{self.root}/{name}", f"{self.root}/{name}.partial"
        self.fs.pipe_file(partial, content)
        self.fs.mv(partial, path)

    def write_samples(self, samples: pl.DataFrame) -> None:
        content = io.BytesIO()
        samples.write_parquet(content)
        self.write_file("samples.parquet", content.getvalue())

    def drop_receipt(self) -> None:
        if self.fs.exists(f"{self.root}/receipt.json"):
            self.fs.rm_file(f"{self.root}/receipt.json")


def open_store(url: str, mode: str = "r") -> LatentStore:
    """Open a store at a path or any fsspec URL.

    raises  ArtefactError when there is none, or one of another format
    """
    return LatentStore(url, mode)


def store_exists(url: str) -> bool:
    """Whether there is a store at the URL; one whose creation was cut short does not count."""
    fs, root = fsspec.core.url_to_fs(url)
    path = f"{root}/zarr.json"
    return bool(fs.exists(path)) and "format_version" in json.loads(fs.cat_file(path)).get(
        "attributes", {}
    )


def create_store(
    url: str,
    attributes: Mapping[str, Any],
    samples: pl.DataFrame,
    latent_shape: tuple[int, int, int],
) -> LatentStore:
    """Lay out an empty store: every array, its dimension names and units, and no data.

    raises  UsageError when something else is at the URL
    """
    fs, root = fsspec.core.url_to_fs(url)
    if fs.exists(root) and not _may_be_overwritten(fs, root):
        raise UsageError(
            f"{url} exists and is not a latent store", "choose a path that does not exist yet"
        )
    group = zarr.create_group(url, overwrite=True)
    views, count, size = attributes["views"], len(samples), attributes["preprocessing"]["size"]
    latent_names = ["image_mean", "mask_mean"]
    if not attributes["tokenizer"]["deterministic"]:
        latent_names.append("image_std")

    def create(name: str, cell: tuple[int, ...], dtype: str, dims: list[str], **more: Any) -> None:
        group.create_array(
            name,
            shape=(views, count, *cell),
            chunks=(1, SHARD_SAMPLES, *cell),
            dtype=dtype,
            dimension_names=["view", "sample", *dims],
            **more,
        )

    for name in latent_names:
        create(
            name,
            latent_shape,
            "float16",
            ["channel", "y", "x"],
            compressors=_LATENT_CODECS,
            fill_value=np.float16("nan"),  # a foreign reader of an absent cell gets no plausible 0
            attributes={"units": "raw tokenizer units, scaling factor not applied"},
        )
    create(
        "mask", (size, size), "bool", ["row", "column"], compressors=_MASK_CODECS, fill_value=False
    )
    create("key", (KEY_BYTES,), "uint8", ["byte"], compressors=(Crc32cCodec(),), fill_value=0)

    content = io.BytesIO()
    samples.write_parquet(content)
    fs.pipe_file(f"{root}/samples.parquet", content.getvalue())
    # Last, and as a whole: format_version is what makes the folder a store.
    software = {name: version(name) for name in _SOFTWARE}
    group.attrs.update({"format_version": FORMAT_VERSION, **attributes, "software": software})
    return open_store(url, "r+")


def _may_be_overwritten(fs: Any, root: str) -> bool:
    """Whether a folder is empty, or holds only what a creation that was cut short has left."""
    if not fs.isdir(root):
        return False
    names = {path.rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)}
    names = {name for name in names if not name.endswith(".partial")}
    if "zarr.json" not in names:
        return not names
    attributes = json.loads(fs.cat_file(f"{root}/zarr.json")).get("attributes")
    return not attributes and names <= _OWN_NAMES


def cell_keys(
    attributes: Mapping[str, Any], samples: pl.DataFrame, plan: pl.DataFrame, views: int
) -> np.ndarray:
    """Keys of all cells: a 128-bit BLAKE2b digest of everything that decides a cell's bytes.

    That is: encoder version, preprocessing, storage dtype, tokenizer digest; image and mask bytes
    (by sha256); and the view's parameters. Splits, names and paths do not enter, so that changing
    them encodes nothing again.

    returns  uint8 [view, sample, 16]
    """
    common = json.dumps(
        [
            ENCODER_VERSION,
            dict(attributes["preprocessing"]),
            attributes["tokenizer"]["digest"],
            "float16",
        ],
        sort_keys=True,
    )
    prefix = hashlib.blake2b(common.encode(), digest_size=KEY_BYTES)
    parameters = plan.select(PARAMETERS).to_numpy().astype("<f8")
    keys = np.zeros((views, len(samples), KEY_BYTES), dtype=np.uint8)
    hashes = samples.select("image_sha256", "mask_sha256").rows()
    for sample, (image_sha256, mask_sha256) in enumerate(hashes):
        of_sample = prefix.copy()
        of_sample.update(f"{image_sha256} {mask_sha256}".encode())
        for view in range(views):
            cell = of_sample.copy()
            cell.update(parameters[sample * views + view].tobytes())
            keys[view, sample] = np.frombuffer(cell.digest(), dtype=np.uint8)
    return keys
