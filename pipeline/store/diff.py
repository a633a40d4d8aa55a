"""What differs between two stores: settings, samples, and the cells that both have."""

from typing import Any

import polars as pl

from pipeline.store.latent_store import LatentStore


def diff_stores(a: LatentStore, b: LatentStore) -> dict[str, Any]:
    """Settings and samples that differ, by name; JSON types only.

    settings  {name: [value in a, value in b]}, names as paths through the attributes
    samples   {"only in a", "only in b", "image", "mask", "split", "class"}: sample ids
    cells     how many both stores hold (`common`), and of how many the content is the same
    same      whether settings, samples and content are
    """
    settings_a, settings_b = _flat(a.attributes), _flat(b.attributes)
    settings = {
        name: [settings_a.get(name), settings_b.get(name)]
        for name in sorted(settings_a.keys() | settings_b.keys())
        if settings_a.get(name) != settings_b.get(name)
    }
    samples = _diff_samples(a.samples.drop_nulls("split"), b.samples.drop_nulls("split"))
    cells = _count_cells(a, b)
    same = not settings and not any(samples.values()) and cells["common"] == cells["same"]
    return {"settings": settings, "samples": samples, "cells": cells, "same": same}


def _flat(attributes: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings without what says only where and with which versions a store was made."""
    flat: dict[str, Any] = {}
    for key, value in attributes.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in ("root", "manifest_digest"):
            flat[f"{prefix}{key}"] = value
    return flat


def _diff_samples(a: pl.DataFrame, b: pl.DataFrame) -> dict[str, list[str]]:
    both = a.join(b, on="sample_id", suffix="_b")

    def differing(column: str) -> list[str]:
        return both.filter(pl.col(column).ne_missing(pl.col(f"{column}_b")))["sample_id"].to_list()

    return {
        "only in a": a.join(b, on="sample_id", how="anti")["sample_id"].to_list(),
        "only in b": b.join(a, on="sample_id", how="anti")["sample_id"].to_list(),
        "image": differing("image_sha256"),
        "mask": differing("mask_sha256"),
        "split": differing("split"),
        "class": differing("class"),
    }


def _count_cells(a: LatentStore, b: LatentStore) -> dict[str, int]:
    """Cells of both, and those with equal checksums, which are over key and content."""
    rows_a = a.samples["sample_id"].to_list()
    place_b = {name: row for row, name in enumerate(b.samples["sample_id"])}
    pairs = [(row, place_b[name]) for row, name in enumerate(rows_a) if name in place_b]
    views = min(*(min(s.views, s.array("checksum").shape[0]) for s in (a, b)))
    at_a, at_b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    common = a.present()[:views, at_a] & b.present()[:views, at_b]
    if a.data_arrays != b.data_arrays:
        return {"common": int(common.sum()), "same": 0}
    equal = a.checksums()[:views, at_a] == b.checksums()[:views, at_b]
    return {"common": int(common.sum()), "same": int((common & equal.all(axis=(2, 3))).sum())}
