"""Predictions at the original images' own size: grey maps carried to it, and scored there."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from lmm.baseline.pixels import Images
from lmm.decoder import THRESHOLD, Grey, at_size
from lmm.metrics import HD95, Scores, score
from pipeline.errors import ArtefactError
from pipeline.images import Mask
from pipeline.places import is_folder
from pipeline.samples import read_truth, require_same_bytes


def require_originals(images: Images) -> None:
    """Raise ArtefactError when the folder of the files that images were made from is gone."""
    root = images.source().root
    if not is_folder(root):
        raise ArtefactError(
            f"{images.url}: its images were in {root}, which has gone",
            "bring the archive back; or ingest it where it is now and encode into the same "
            "store, which encodes nothing again",
        )


class Originals:
    """The mask files of a store or a manifest, and scores against each at its own size.

    predictions  the masks that were scored, each as `file_of` makes it
    greys        the grey maps at that size before the threshold, likewise; none unless `keep_greys`

    raises  ArtefactError when their folder is gone; InputError when a mask is not the bytes that
            were ingested
    """

    def __init__(
        self, images: Images, sample_ids: Sequence[str], hd95: HD95, *, keep_greys: bool = False
    ) -> None:
        self._source = images.source()
        self._hd95 = hd95
        self._keep_greys = keep_greys
        self._scored: list[Scores] = []
        self.predictions: list[bytes] = []
        self.greys: list[bytes] = []
        require_originals(images)
        rows = {row["sample_id"]: row for row in self._source.frame.iter_rows(named=True)}
        self._rows: list[Mapping[str, Any]] = [rows[name] for name in sample_ids]
        for row in self._rows:
            require_same_bytes(self._source.mask_paths(row), row["mask_sha256"])

    def score(self, greys: torch.Tensor) -> None:
        """Score the grey maps of the next samples, (B, S, S) in [0, 1]."""
        first = len(self._scored)
        rows = self._rows[first : first + len(greys)]
        for grey, row in zip(greys.cpu().numpy(), rows, strict=True):
            truth = read_truth(self._source, row)
            native = at_size(grey, *truth.shape)
            prediction = native > THRESHOLD
            self.predictions.append(file_of(prediction))
            if self._keep_greys:
                self.greys.append(file_of(native))
            self._scored.append(score(prediction[None], truth[None], hd95=self._hd95))

    @property
    def scores(self) -> Scores:
        """Of all samples so far, as `lmm.metrics.score` gives them; px are the original's."""
        names = self._scored[0]
        return {name: np.concatenate([one[name] for one in self._scored]) for name in names}


def file_of(values: Mask | Grey) -> bytes:
    """A mask as a PNG file of 0 and 255; a grey map, [0, 1], as one of 0…255."""
    content = io.BytesIO()
    Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8)).save(content, "png")
    return content.getvalue()
