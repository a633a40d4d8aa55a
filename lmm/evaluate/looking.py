"""The truth of the images that are scored, and what is made of their grey maps as they come."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lmm.baseline.pixels import Images
from lmm.evaluate.cells import Cells, PixelCells
from lmm.evaluate.evaluation import Wanted
from lmm.evaluate.members import Members
from lmm.evaluate.native import Originals, file_of
from lmm.evaluate.sureness import Sureness
from lmm.metrics import HD95, Scores, score, summarise
from lmm.splits import groups_of
from pipeline.telling import Progress, ticking


class Truth:
    """The true masks of the images that are scored, in order of sample_id, and their groups."""

    def __init__(self, images: Images, cells: Cells | PixelCells, hd95: HD95) -> None:
        self.images = images
        self.ids = [cells.sample_ids[place] for place in cells.order]
        self.masks = cells.truths[cells.order]
        self.groups = groups_of(images.samples, self.ids)
        self.hd95 = hd95

    def score(self, masks: np.ndarray) -> Scores:
        """Scores of each image's mask."""
        return score(masks, self.masks, hd95=self.hd95)

    def summary(self, scores: Scores, chosen: np.ndarray | None = None) -> dict[str, Any]:
        """What scores say of all images, or of those chosen, (n,) bool."""
        if chosen is None:
            return summarise(scores, groups=self.groups)
        some = {key: of[chosen] for key, of in scores.items()}
        return summarise(some, groups=self.groups[chosen])


class Looked:
    """What is made of grey maps as they come, beside masks, as far as it is wanted.

    originals  scores at the originals' own size
    sure       confidence and calibration
    greys      the maps as PNG files
    tick       tells that so many decodes are done
    """

    def __init__(
        self, members: Members, truth: Truth, wanted: Wanted, progress: Progress | None
    ) -> None:
        self._truth = truth
        self._keep = wanted.grey
        self._decodes = members.decodes(truth.images)
        in_all = len(truth.ids) * (self._decodes + (2 if wanted.ceiling else 0))
        self.tick = ticking(progress, in_all)
        self.originals = None
        if wanted.native:
            self.originals = Originals(truth.images, truth.ids, wanted.hd95, keep_greys=wanted.grey)
        self.sure = Sureness(truth.masks) if wanted.sure or not members.alone else None
        self.greys: list[bytes] = self.originals.greys if self.originals else []

    def __call__(self, greys: torch.Tensor, alone: Sequence[torch.Tensor] = ()) -> None:
        """Take grey maps in, (≤ n, H, W), and those of each run where they are a mean."""
        if self.originals:
            self.originals.score(greys)
        elif self._keep:
            self.greys.extend(file_of(grey) for grey in greys.cpu().numpy())
        if self.sure:
            self.sure.add(greys, alone)
        self.tick(self._decodes * len(greys))

    def columns(self) -> dict[str, Any]:
        """Values by image."""
        found: dict[str, Any] = {"confidence": self.sure.confidence} if self.sure else {}
        if self.originals:
            found |= {f"native_{name}": values for name, values in self.originals.scores.items()}
        return found

    def summaries(self, scores: Scores) -> dict[str, Any]:
        """What they say of all images; `scores` are those of their masks."""
        found = {"confidence": self.sure.summary(scores["dsc"])} if self.sure else {}
        if self.originals:
            found["native"] = self._truth.summary(self.originals.scores)
        return found
