"""The latent store: what it says of itself, and its cells shard by shard."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import polars as pl
import zarr

from pipeline.errors import ArtefactError
from pipeline.manifest import Manifest
from pipeline.places import place_of
from pipeline.store.folder import Folder, store_exists
from pipeline.store.format import (
    FORMAT_VERSION,
    LATENT_ARRAYS,
    RECEIPT_FILE,
    SAMPLES_FILE,
    open_arrays,
)
from pipeline.store.keys import cell_checksums, plan_of, wanted_cells, wanted_keys
from pipeline.store.receipt import is_of
from pipeline.store.shards import Shards
from pipeline.telling import some_of

_SHARDS_OF_KEYS = 1 << 14  # whose keys are kept, a kB each: a reader comes back to them each epoch


class LatentStore:
    """An open store.

    samples     the manifest's rows in array order; a sample that left the manifest keeps its place
                with a null split until it is pruned
    attributes  format_version, tokenizer, preprocessing, views, eval_views, view_policy, seed,
                manifest_digest, root (folder of the images), software
    folder      its files; `shards` reads and writes its cells, `group` is zarr's own view of it
    """

    def __init__(self, url: str, mode: str) -> None:
        self.url = url
        if not store_exists(url):
            raise ArtefactError(
                f"no latent store at {url}", f"gms-lmm encode manifest.parquet {url} --tokenizer …"
            )
        self.folder = Folder(url)
        self._receipt = self._read_receipt()
        self.group = zarr.open_group(url, mode=mode)  # type: ignore[arg-type]
        self.attributes: dict[str, Any] = dict(self.group.attrs)
        version = self.attributes.get("format_version")
        if version != FORMAT_VERSION:
            raise ArtefactError(
                f"{url} has store format {version}, this version reads format {FORMAT_VERSION}",
                "encode the data set into a new store",
            )
        # A store of before eval_views, which has all views of every sample, does not say so.
        self.attributes.setdefault("eval_views", self.attributes["views"])
        self.samples = pl.read_parquet(io.BytesIO(self.folder.read(SAMPLES_FILE)))
        self.shards = Shards(self.folder, open_arrays(self.group, url), len(self.samples))
        self._kept_keys = lru_cache(_SHARDS_OF_KEYS)(self._shard_keys)

    # --- what it says of itself

    @property
    def root(self) -> str:
        """Its path in its file system."""
        return str(self.folder.root)

    @property
    def name(self) -> str:
        """Last part of the URL, without `.zarr`: what files made from the store are called."""
        return self.root.rstrip("/").rpartition("/")[2].removesuffix(".zarr")

    @property
    def views(self) -> int:
        """K; view 0 is the clean image."""
        return int(self.attributes["views"])

    @property
    def eval_views(self) -> int:
        """Views of the samples of split test; the first of the K."""
        return int(self.attributes["eval_views"])

    @property
    def size(self) -> int:
        """Side of image and mask, in px."""
        return int(self.attributes["preprocessing"]["size"])

    @property
    def tokenizer(self) -> dict[str, Any]:
        """The tokenizer as `Tokenizer.describe` told it: name, digest, factors."""
        return dict(self.attributes["tokenizer"])

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        shape = self.array("image_mean").shape
        return (shape[2], shape[3], shape[4])

    @property
    def latent_arrays(self) -> list[str]:
        """image_mean, mask_mean, and image_std unless the tokenizer is deterministic."""
        return [name for name in LATENT_ARRAYS if name in self.shards.arrays]

    @property
    def data_arrays(self) -> list[str]:
        """The latents' arrays and `mask`, in the order of a cell's checksums."""
        return [*self.latent_arrays, "mask"]

    @property
    def arrays(self) -> list[str]:
        """The data arrays, then `checksum` and `key`."""
        return list(self.shards.arrays)

    def array(self, name: str) -> zarr.Array[Any]:
        """One array [view, sample, …] as zarr gives it: absent cells read as the fill value."""
        return self.shards.arrays[name]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file, by its path inside the store, as found when first asked for."""
        return self.folder.files

    def source(self) -> Manifest:
        """The live samples as a manifest, to read the images that were encoded once more."""
        preprocessing = self.attributes["preprocessing"]
        values, window = preprocessing["mask_values"], preprocessing.get("window")
        return Manifest(
            self.samples.drop_nulls("split"),
            place_of(self.attributes["root"]),
            "store",
            values == "labels",
            window=window and (*window,),
            foreground=None if values in ("labels", "binary") else values,
        )

    # --- its cells

    @cached_property
    def shard_samples(self) -> int:
        """Samples in one shard."""
        return self.shards.length

    @property
    def reads_ahead(self) -> int:
        """How many reads to begin before one is needed; 0 on a local disk."""
        return self.shards.reads_ahead

    def blocks(self) -> int:
        """Shards along the sample axis."""
        return self.shards.blocks

    def rows_of(self, block: int) -> slice:
        """The rows of `samples` whose cells lie in a block."""
        return self.shards.rows_of(block)

    def chunk_path(self, name: str, view: int, block: int) -> str:
        """Where one shard of one array lies inside the store."""
        return self.shards.path(name, view, block)

    def read_shard(self, name: str, view: int, block: int, *, bits: bool = False) -> np.ndarray:
        """One shard of one array, not to be written to: [≤ shard_samples, …].

        Its CRC-32C is checked; whether its cells are those that belong there `require_right` says.

        bits    whether masks stay packed as they are stored: [≤ shard_samples, H, ⌈W/8⌉] uint8
        raises  ArtefactError naming the chunk when it is missing or fails its checksum: zarr
                would give the fill value for a missing one
        """
        return self.shards.read(name, view, block, bits=bits)

    def require_right(
        self, view: int, block: int, inside: np.ndarray, cells: Mapping[str, np.ndarray]
    ) -> None:
        """Raise ArtefactError unless cells read from a shard are what was encoded for their place.

        Their checksum is over the key that they ought to have, so that what lies in another's place
        is found, as is what was encoded for another view plan, image or tokenizer.

        inside  places of the n cells in the shard
        cells   of some data arrays: these cells [n, …], masks as bool or bits
        """
        rows = self.rows_of(block).start + inside
        found = cell_checksums(self.wanted_keys(view, block)[inside], cells)
        columns = [self.data_arrays.index(name) for name in cells]
        wrong = (found != self.read_shard("checksum", view, block)[inside][:, columns]).any(axis=2)
        for name, of in zip(cells, wrong.T, strict=True):
            if of.any():
                ids = self.samples["sample_id"].gather(rows[of])
                raise ArtefactError(
                    f"{self.url}: {self.chunk_path(name, view, block)} holds something else than "
                    f"was encoded for {some_of(ids)}",
                    self.shards.mend,
                )

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """What is read inside is of the store as it was when it was opened.

        raises  ArtefactError when the receipt is another by the end: whoever changes a store takes
                its receipt away first, and puts one back that tells what the store holds by then
        """
        try:
            yield
        except ArtefactError:  # most likely for that reason
            self._require_same_receipt()
            raise
        self._require_same_receipt()

    # --- whether they are what is asked for

    @cached_property
    def live(self) -> np.ndarray:
        """Which rows of `samples` belong to the manifest; bool [samples]."""
        live: np.ndarray = self.samples["split"].is_not_null().to_numpy()
        return live

    @cached_property
    def wanted(self) -> np.ndarray:
        """Which cells there are to be; bool [view, sample]."""
        return wanted_cells(self.attributes, self.samples)

    def plan(self, view: int, block: int) -> pl.DataFrame:
        """The view plan of the cells of one shard, a row each; see `draw_views`."""
        return plan_of(self.attributes, self.samples[self.rows_of(block)], [view])

    def wanted_keys(self, view: int, block: int) -> np.ndarray:
        """The keys that a shard's cells have when they hold what they should; uint8 [n, 16]."""
        return self._kept_keys(view, block)

    def _shard_keys(self, view: int, block: int) -> np.ndarray:
        keys: np.ndarray
        (keys,) = wanted_keys(self.attributes, self.samples[self.rows_of(block)], [view])
        return keys

    def stored_keys(self) -> np.ndarray:
        """The keys as they stand, also of views no longer asked for; zero where nothing is stored.

        returns  uint8 [≥ views, sample, 16]
        """
        return self.shards.read_digests("key", range(self.blocks()))

    def checksums(self) -> np.ndarray:
        """Checksums of key and content of each cell; uint8 [≥ views, sample, arrays, 8]."""
        return self.shards.read_digests("checksum", range(self.blocks()))

    def present(self) -> np.ndarray:
        """Which cells hold what the manifest and settings ask for; bool [view, sample]."""
        present = np.zeros((self.views, len(self.samples)), np.bool_)
        for blocks, rows in self.shards.spans(self.views):
            present[:, rows] = self.present_in(blocks, rows)
        return present

    def present_in(self, blocks: range, rows: slice) -> np.ndarray:
        """The same of the rows of some blocks; bool [view, n]."""
        stored = self.shards.read_digests("key", blocks)[: self.views]
        # Fewer views than wanted where the store was changed while it was opened.
        wanted = wanted_keys(self.attributes, self.samples[rows], range(len(stored)))
        present = np.zeros((self.views, wanted.shape[1]), np.bool_)
        present[: len(stored)] = (stored == wanted).all(axis=2)
        present &= self.wanted[:, rows]
        return present

    def receipt(self) -> dict[str, Any] | None:
        """The receipt as it was when the store was opened; None of one that was being built."""
        if self._receipt is None:
            return None
        try:
            return dict(json.loads(self._receipt))
        except ValueError:  # a receipt of nothing
            return {}

    def require_complete(self) -> None:
        """Raise ArtefactError unless the store has its receipt, and it is of what is asked for.

        With it every cell was there and right; each that is read meets `require_right` once more.
        """
        receipt = self.receipt()
        if is_of(receipt, self.attributes, self.samples):
            return
        cells = int(self.wanted.sum())
        missing = cells - int(self.present().sum())
        what = "" if missing else ", only the receipt" + (" is of another state" if receipt else "")
        raise ArtefactError(
            f"{self.url} is not finished: {missing} of {cells} cells are missing{what}",
            "run the gms-lmm encode command again: it goes on where it stopped",
        )

    def _read_receipt(self) -> bytes | None:
        try:
            return self.folder.read(RECEIPT_FILE)
        except FileNotFoundError:
            return None

    def _require_same_receipt(self) -> None:
        if self._read_receipt() != self._receipt:
            raise ArtefactError(
                f"{self.url} was changed while it was read",
                "run the same command again once nothing writes to the store any more",
            )


def open_store(url: str, mode: str = "r") -> LatentStore:
    """Open a store at a path or any fsspec URL.

    raises  ArtefactError when there is none, or one of another format or with unknown codecs
    """
    return LatentStore(url, mode)
