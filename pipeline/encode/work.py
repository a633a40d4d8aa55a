"""What an encode has to do and why, cell by cell, found out before anything is touched.

The keys that manifest and settings ask for are held against the keys that are stored: what differs
is work. That is new samples, edited files, added views, and whatever a killed encode left undone.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.augment import POLICY
from pipeline.errors import UsageError
from pipeline.manifest import Manifest
from pipeline.store import LatentStore, open_store, store_exists
from pipeline.store.format import KEY_BYTES
from pipeline.store.keys import wanted_cells, wanted_keys
from pipeline.telling import some_of
from pipeline.tokenizer import Tokenizer

EVAL_VIEWS = 8  # of samples that are never trained on; averages read them

_FLOAT16_BYTES = 2

# In order of precedence: the first that holds of a cell is why it is encoded.
REASONS = (
    "new sample",
    "image edited",
    "mask edited",
    "view added",
    "view drawn anew",
    "not encoded yet",
    "encoded from something else",
)


@dataclass(frozen=True)
class Work:
    """The state a store is to be brought to, and the cells that have to be encoded for it.

    attributes  the store's attributes as they are to be
    samples     its rows, as they are to be, in array order
    todo        bool [view, sample], the cells to encode
    reasons     int8 [view, sample], place in REASONS; of no meaning where nothing is to do
    """

    attributes: dict[str, Any]
    samples: pl.DataFrame
    todo: np.ndarray
    reasons: np.ndarray

    def counts(self) -> dict[str, int]:
        """Cells to encode by reason, those with any."""
        found = np.bincount(self.reasons[self.todo], minlength=len(REASONS)).tolist()
        return {reason: count for reason, count in zip(REASONS, found, strict=True) if count}

    def size_when_done(self) -> tuple[int, int]:
        """How many cells the store is to have, and the bytes of their latents.

        Masks, checksums and keys add one or two per cent.
        """
        cells = int(wanted_cells(self.attributes, self.samples).sum())
        tokenizer, size = self.attributes["tokenizer"], self.attributes["preprocessing"]["size"]
        latents = 2 if tokenizer["deterministic"] else 3
        side = size // tokenizer["downsampling"]
        return cells, cells * latents * tokenizer["latent_channels"] * side * side * _FLOAT16_BYTES


def store_attributes(
    manifest: Manifest,
    tokenizer: Tokenizer,
    views: int,
    size: int,
    seed: int,
    precision: str,
    eval_views: int = EVAL_VIEWS,
) -> dict[str, Any]:
    """Everything a store says about how it was made; JSON types only."""
    return {
        "tokenizer": tokenizer.describe(),
        "preprocessing": {
            "size": size,
            "image_resize": "bilinear, antialiased",
            "mask_resize": "nearest",
            "mask_values": manifest.mask_values,
            "pixel_range": [-1, 1],
            "precision": precision,
            # Only where there is one: the keys of all other stores are without it.
            **({"window": list(manifest.window)} if manifest.window else {}),
        },
        "views": views,
        "eval_views": min(eval_views, views),
        "view_policy": asdict(POLICY),
        "seed": seed,
        "manifest_digest": manifest.digest,
        "root": str(manifest.root),
    }


def find_work(url: str, manifest: Manifest, attributes: dict[str, Any]) -> Work:
    """Hold what is asked for against what is stored; writes nothing.

    raises  UsageError when the store was made with another tokenizer, size or precision, or from
            masks that are read otherwise by now
    """
    views = attributes["views"]
    if not store_exists(url):
        return _all_new(attributes, manifest.frame)
    store = open_store(url)
    refuse_other_settings(store, attributes)
    refuse_other_masks(store, manifest.frame)
    samples = merge_samples(store.samples, manifest.frame)
    work = _all_new(attributes, samples)
    for blocks, rows in store.shards.spans(views):
        known = store.shards.read_digests("key", blocks)[:views]
        stored = np.zeros((views, known.shape[1], KEY_BYTES), np.uint8)
        stored[: len(known)] = known
        wanted = wanted_keys(attributes, samples[rows], range(views))
        work.todo[:, rows] &= (stored != wanted).any(axis=2)
        pair, held = (store.samples[rows], samples[rows]), stored.any(axis=2)
        work.reasons[:, rows] = _reasons(store, attributes, *pair, np.logical_not(held))
    return work


def _all_new(attributes: dict[str, Any], samples: pl.DataFrame) -> Work:
    """All that is to be done where nothing is known of any sample."""
    todo = wanted_cells(attributes, samples)
    return Work(attributes, samples, todo, np.zeros(todo.shape, np.int8))


def _reasons(
    store: LatentStore,
    attributes: dict[str, Any],
    old: pl.DataFrame,
    now: pl.DataFrame,
    empty: np.ndarray,
) -> np.ndarray:
    """Why some samples' cells would be encoded: int8 [view, sample], places in REASONS.

    old, now  the samples as the store has them and as they are asked for
    empty     bool [view, sample], where nothing is stored
    """
    image, mask = ((old[c] != now[c]).to_numpy() for c in ("image_sha256", "mask_sha256"))
    view = np.arange(len(empty))[:, None]
    views_before = np.where(old["split"].eq_missing("test"), store.eval_views, store.views)
    redrawn = any(attributes[key] != store.attributes[key] for key in ("seed", "view_policy"))
    holds = {
        "new sample": False,
        "image edited": image,
        "mask edited": mask,
        "view added": (view >= views_before) & empty,
        "view drawn anew": (view > 0) & ~empty & redrawn,
        "not encoded yet": empty,
        "encoded from something else": True,
    }
    conditions = [np.broadcast_to(holds[reason], empty.shape) for reason in REASONS]
    first: np.ndarray = np.argmax(conditions, axis=0).astype(np.int8)
    return first


def refuse_other_settings(store: LatentStore, attributes: dict[str, Any]) -> None:
    """Raise UsageError unless tokenizer and preprocessing are those the store was made with."""
    fix = "encode into another store path"
    old, new = store.tokenizer, attributes["tokenizer"]
    if old["digest"] != new["digest"]:
        raise UsageError(
            f"{store.url} was encoded with tokenizer {old['name']!r} ({old['digest'][:12]}), "
            f"asked for is {new['name']!r} ({new['digest'][:12]})",
            fix,
        )
    settings, made_with = attributes["preprocessing"], store.attributes["preprocessing"]
    for key in settings | made_with:
        stored, value = made_with.get(key), settings.get(key)
        if stored != value:
            raise UsageError(
                f"{store.url} was encoded with {key} {stored}, asked for is {value}", fix
            )


def refuse_other_masks(store: LatentStore, wanted: pl.DataFrame) -> None:
    """Raise UsageError where mask files of the same bytes are read as other masks by now.

    A key knows a mask by the bytes of its files: cells of one that was read inside out before, by
    the index of its palette, would be taken for right.
    """
    both = store.samples.join(wanted, on=["sample_id", "mask_sha256"], suffix="_now")
    other = both.filter(pl.col("foreground_fraction") != pl.col("foreground_fraction_now"))
    if len(other):
        raise UsageError(
            f"{len(other)} masks are read otherwise than when {store.url} was encoded: "
            f"{some_of(other['sample_id'])}",
            "encode into another store path",
        )


def merge_samples(stored: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """The manifest's rows in array order: known samples keep their place, new ones come last.

    A sample that has left the manifest keeps its row and place with a null split, so that its
    cells are still there should it come back. A store of before twins and folds gets their columns.
    """
    known = stored.select("sample_id").join(
        wanted, on="sample_id", how="inner", maintain_order="left"
    )
    gone = stored.join(wanted, on="sample_id", how="anti").with_columns(
        split=pl.lit(None, pl.String)
    )
    new = wanted.join(stored, on="sample_id", how="anti", maintain_order="left")
    place = {name: i for i, name in enumerate(stored["sample_id"])}
    rows = pl.concat([known.select(wanted.columns), gone], how="diagonal").select(wanted.columns)
    order = rows["sample_id"].replace_strict(place, return_dtype=pl.Int64)
    return pl.concat([rows[order.arg_sort()], new.select(wanted.columns)])
