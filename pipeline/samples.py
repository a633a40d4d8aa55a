"""A sample's files to its pixels, when they are still the bytes that were ingested."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.ahead import map_ahead
from pipeline.errors import InputError
from pipeline.files import sha256_of
from pipeline.images import ImageU8, Mask, read_image, read_union, resize_image, resize_mask
from pipeline.manifest import Manifest


def decode_sample(
    manifest: Manifest, row: dict[str, Any], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One sample's pixels at the store's size: image (size, size, 3) uint8, mask (size, size) bool.

    raises  InputError when the files are not the bytes that were ingested
    """
    image_path, mask_paths = manifest.image_path(row), manifest.mask_paths(row)
    require_same_bytes([image_path], row["image_sha256"])
    require_same_bytes(mask_paths, row["mask_sha256"])
    image = resize_image(read_image(image_path, manifest.window), size)
    return image, resize_mask(read_truth(manifest, row), size)


def read_truth(manifest: Manifest, row: Mapping[str, Any]) -> Mask:
    """One sample's mask at its own size, (H, W) bool, read as the data set's masks are to be."""
    paths = manifest.mask_paths(row)
    return read_union(paths, labels=manifest.labels, foreground=manifest.foreground)


def require_same_bytes(paths: list[Path], ingested_sha256: str) -> None:
    """Raise InputError unless the files, one after the other, are the bytes that were ingested."""
    names = ", ".join(str(path) for path in paths)
    try:
        found = sha256_of(paths)
    except OSError as error:
        which, why = error.filename or names, error.strerror or "no such object"
        raise InputError(f"{which} cannot be read: {why}", "restore the file") from error
    if found != ingested_sha256:
        raise InputError(f"{names} changed since it was ingested", "run gms-lmm ingest again")


def original_images(manifest: Manifest, size: int, sample_ids: Sequence[str]) -> Iterator[ImageU8]:
    """Images of a manifest as they are encoded.

    size    side of each, px
    yields  (size, size, 3) uint8, in the order of `sample_ids`
    raises  InputError when a file is gone or no longer the bytes that were ingested
    """
    row_of = {row["sample_id"]: row for row in manifest.frame.to_dicts()}
    return map_ahead(lambda name: decode_sample(manifest, row_of[name], size)[0], sample_ids)
