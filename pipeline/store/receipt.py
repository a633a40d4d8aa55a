"""What the receipt of a finished store says of it: settings, manifest and samples, as digests."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import polars as pl


def receipt_head(attributes: Mapping[str, Any], samples: pl.DataFrame) -> dict[str, Any]:
    """What a receipt says of a store without reading its data; JSON types only.

    There are no times, host names or paths in it, so that equal stores have equal receipts.
    """
    config = {
        key: value
        for key, value in attributes.items()
        if key not in ("software", "manifest_digest", "root")
    }
    # Not said by a store of before eval_views, whose receipt is to be the same.
    if config.get("eval_views") == config["views"]:
        del config["eval_views"]
    config["tokenizer"] = {k: v for k, v in config["tokenizer"].items() if k != "name"}
    live = samples.filter(pl.col("split").is_not_null()).sort("sample_id")
    return {
        "format_version": attributes["format_version"],
        "config_digest": _json_digest(config),
        "manifest_digest": attributes["manifest_digest"],
        # Without twins and folds, which a store of before them does not have.
        "samples_digest": _rows_digest(live.drop("twin_group", "fold", strict=False)),
        "views": attributes["views"],
        "samples": len(live),
        "by_split": dict(sorted(live["split"].value_counts().rows())),
    }


def is_of(
    receipt: Mapping[str, Any] | None, attributes: Mapping[str, Any], samples: pl.DataFrame
) -> bool:
    """Whether a receipt is of a store with these attributes and samples; its data are not read."""
    head = receipt_head(attributes, samples)
    return receipt is not None and {key: receipt.get(key) for key in head} == head


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _rows_digest(frame: pl.DataFrame) -> str:
    """That of the rows as one list, of which there is never more than a row in memory."""
    digest = hashlib.sha256(b"[")
    for place, row in enumerate(frame.iter_rows()):
        digest.update((", " if place else "").encode() + json.dumps(row).encode())
    digest.update(b"]")
    return digest.hexdigest()
