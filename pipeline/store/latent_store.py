"""The latent store: a zarr v3 group written once and read many times, cell by keyed cell.

A cell is one view of one sample. A shard is one view of `shard_samples` consecutive samples:
one zarr chunk in each array, written by one writer, invalidated before and keyed after its data.
"""

import io
import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import polars as pl
import zarr
from fsspec.implementations.local import LocalFileSystem

from pipeline.ahead import map_ahead
from pipeline.augment import ViewPolicy, draw_views
from pipeline.errors import ArtefactError
from pipeline.manifest import Manifest
from pipeline.store.chunks import decode_bits, decode_chunk, packed_bits
from pipeline.store.keys import cell_keys

FORMAT_VERSION = 3
LATENT_ARRAYS = ("image_mean", "image_std", "mask_mean")
DATA_ARRAYS = (*LATENT_ARRAYS, "mask")
CELL_ARRAYS = ("checksum", "key")  # what is kept of a cell beside its data


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
        version = self.attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise ArtefactError(
                f"{url} has store format {version}, this version reads format {FORMAT_VERSION}",
                "encode the data set into a new store",
            )
        self.samples = pl.read_parquet(io.BytesIO(self.fs.cat_file(f"{self.root}/samples.parquet")))
        with packed_bits():
            found = {name: self.group.get(name) for name in (*DATA_ARRAYS, *CELL_ARRAYS)}
        # A shard that happens to equal the fill value must still be a file: a missing file means
        # missing data. zarr does not keep this setting with the array.
        self._arrays: dict[str, zarr.Array[Any]] = {
            name: array.with_config({"write_empty_chunks": True})
            for name, array in found.items()
            if isinstance(array, zarr.Array)
        }

    @property
    def name(self) -> str:
        """Last part of the URL, without `.zarr`: what files made from the store are called."""
        return str(self.root).rstrip("/").rpartition("/")[2].removesuffix(".zarr")

    def source(self) -> Manifest:
        """The live samples as a manifest, to read the images that were encoded once more."""
        preprocessing = self.attributes["preprocessing"]
        values, window = preprocessing["mask_values"], preprocessing.get("window")
        return Manifest(
            self.samples.drop_nulls("split"),
            Path(self.attributes["root"]),
            "store",
            values == "labels",
            window=window and (*window,),
            foreground=values if values.startswith("#") else None,
        )

    @property
    def is_local(self) -> bool:
        """Whether the store is on a disk of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def reads_ahead(self) -> int:
        """How many reads to begin before one is needed.

        An object store answers late. On a local disk, reading is the work of the processor, and
        threads that wait for one another's turn made it a quarter slower.
        """
        return 0 if self.is_local else 16

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

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        shape = self.array("image_mean").shape
        return (shape[2], shape[3], shape[4])

    @property
    def latent_arrays(self) -> list[str]:
        return [name for name in LATENT_ARRAYS if name in self._arrays]

    @property
    def data_arrays(self) -> list[str]:
        """The latents' arrays and `mask`, in the order of a cell's checksums."""
        return [*self.latent_arrays, "mask"]

    @property
    def arrays(self) -> list[str]:
        return [*self.data_arrays, *CELL_ARRAYS]

    def array(self, name: str) -> zarr.Array[Any]:
        return self._arrays[name]

    @cached_property
    def shard_samples(self) -> int:
        """Samples in one shard."""
        return int(self.array("key").chunks[1])

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
        """The keys as they stand, also of views no longer asked for; zero where nothing is stored.

        returns  uint8 [≥ views, sample, 16]
        """
        return self._digests("key")

    def checksums(self) -> np.ndarray:
        """Checksums of key and content of each cell; uint8 [≥ views, sample, arrays, 8]."""
        return self._digests("checksum")

    def drop_keys(self, view: int, block: int, inside: np.ndarray) -> np.ndarray:
        """Take their keys from some cells of a shard, so that nothing vouches for their data.

        inside   places of the cells in the shard
        returns  uint8 [≤ shard_samples, 16], the shard's keys as they are now
        """
        array, rows = self.array("key"), self.rows_of(block)
        keys: np.ndarray = np.array(array[view, rows])
        if keys[inside].any():
            keys[inside] = 0
            array[view, rows] = keys
        return keys

    def present(self) -> np.ndarray:
        """Which cells hold what the manifest and settings ask for; bool [view, sample]."""
        matching = (self.stored_keys()[: self.views] == self.wanted_keys).all(axis=2)
        return np.asarray(matching & self.live)

    @cached_property
    def files(self) -> dict[str, int]:
        """Bytes of each file, by its path inside the store, as found when first asked for."""
        self.fs.invalidate_cache()
        found: dict[str, dict[str, Any]] = self.fs.find(self.root, detail=True)
        return {path[len(self.root) + 1 :]: int(info["size"]) for path, info in found.items()}

    def chunk_path(self, name: str, view: int, block: int) -> str:
        """Where one shard of one array lies inside the store."""
        return f"{name}/c/{view}/{block}" + "/0" * (self.array(name).ndim - 2)

    def rows_of(self, block: int) -> slice:
        """The rows of `samples` whose cells lie in a block."""
        start = block * self.shard_samples
        return slice(start, min(start + self.shard_samples, len(self.samples)))

    def read_shard(self, name: str, view: int, block: int, *, bits: bool = False) -> np.ndarray:
        """One shard of one array, not to be written to: [≤ shard_samples, …].

        Its CRC-32C is checked; the checksums of its cells are for `verify`.

        bits    whether masks stay packed as they are stored: [≤ shard_samples, H, ⌈W/8⌉] uint8
        raises  ArtefactError naming the chunk when it is missing or fails its checksum: zarr
                would give the fill value for a missing one
        """
        cells = self._chunk(name, view, block, decode_bits if bits else decode_chunk)
        if cells is None:
            chunk = self.chunk_path(name, view, block)
            raise ArtefactError(f"{self.url}: chunk {chunk} is missing", self._mend)
        return cells

    def _chunk(
        self,
        name: str,
        view: int,
        block: int,
        decode: Callable[[bytes, zarr.Array[Any]], np.ndarray] = decode_chunk,
    ) -> np.ndarray | None:
        """One shard of one array; None where there is no such file."""
        chunk, rows = self.chunk_path(name, view, block), self.rows_of(block)
        try:
            content = self._content(f"{self.root}/{chunk}")
        except FileNotFoundError:
            return None
        try:
            return decode(content, self.array(name))[: rows.stop - rows.start]
        except Exception as error:  # each codec raises a type of its own on damaged bytes
            what = f"{self.url}: chunk {chunk} is damaged: {error}"
            raise ArtefactError(what, self._mend) from error

    def _content(self, path: str) -> bytes:
        if self.is_local:  # in a fifth of the time that fsspec takes
            return Path(path).read_bytes()
        return bytes(self.fs.cat_file(path))

    def _digests(self, name: str) -> np.ndarray:
        """All of `key` or `checksum`; zero where there is no file yet."""
        array = self.array(name)
        found = np.zeros((array.shape[0], len(self.samples), *array.shape[2:]), np.uint8)
        places = list(np.ndindex(array.shape[0], self.blocks()))
        chunks = map_ahead(lambda place: self._chunk(name, *place), places, self.reads_ahead)
        for (view, block), cells in zip(places, chunks, strict=True):
            if cells is not None:
                found[view, self.rows_of(block)] = cells
        return found

    @property
    def _mend(self) -> str:
        return f"gms-lmm verify {self.url} names all that is damaged, encode --repair mends it"

    def blocks(self) -> int:
        """Shards along the sample axis."""
        return -(-len(self.samples) // self.shard_samples)

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
        self._replace(f"{self.root}/{name}", content)

    def read_beside(self, suffix: str) -> bytes | None:
        """What `write_beside` wrote, or None."""
        path = f"{self.root}.{suffix}"
        return bytes(self.fs.cat_file(path)) if self.fs.exists(path) else None

    def write_beside(self, suffix: str, content: bytes) -> None:
        """Replace as a whole the file `STORE.suffix`: made from the store, and no part of it."""
        self._replace(f"{self.root}.{suffix}", content)

    def _replace(self, path: str, content: bytes) -> None:
        if self.is_local:
            partial = f"{path}.{os.getpid()}.partial"
            self.fs.pipe_file(partial, content)
            self.fs.mv(partial, path)
        else:  # object stores replace an object as a whole
            self.fs.pipe_file(path, content)

    def write_samples(self, samples: pl.DataFrame) -> None:
        content = io.BytesIO()
        samples.write_parquet(content)
        self.write_file("samples.parquet", content.getvalue())

    def remove_partial_files(self) -> None:
        """Remove what killed writers left; nobody reads it."""
        for file in self.files:
            if file.endswith(".partial"):
                self.fs.rm_file(f"{self.root}/{file}")

    def drop_receipt(self) -> None:
        if self.fs.exists(f"{self.root}/receipt.json"):
            self.fs.rm_file(f"{self.root}/receipt.json")


def open_store(url: str, mode: str = "r") -> LatentStore:
    """Open a store at a path or any fsspec URL.

    raises  ArtefactError when there is none, or one of another format
    """
    return LatentStore(url, mode)


def store_exists(url: str) -> bool:
    """Whether there is a store at the URL; one whose creation was cut short does not count.

    raises  ArtefactError when a prune was cut short while the old store was aside
    """
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    if not fs.exists(root) and fs.exists(f"{root}.old"):
        raise ArtefactError(
            f"{url} is not there, but {root}.old is: a prune was cut short",
            f"gms-lmm prune {url} finishes it",
        )
    path = f"{root}/zarr.json"
    return bool(fs.exists(path)) and "format_version" in json.loads(fs.cat_file(path)).get(
        "attributes", {}
    )
