"""Who predicts: one run, or several and several views or turns of an image, averaged."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import torch

from lmm.averaging import TURNS, Average, View, average_greys, stored_views, turned_views
from lmm.baseline.network import require_latents
from lmm.baseline.pixels import Images
from lmm.encoder import image_latent
from lmm.evaluate.cells import Cells
from lmm.evaluate.native import require_originals
from lmm.evaluate.scorable import require_scorable
from lmm.latents import in_batches
from lmm.run import Run
from pipeline.errors import UsageError
from pipeline.files import sha256_of
from pipeline.samples import original_images
from pipeline.store import LatentStore
from pipeline.store.keys import plan_of


def average_in_words(summary: Mapping[str, Any]) -> str:
    """What is averaged in a summary, for tables and pages; nothing where nothing is."""
    if "average" not in summary:
        return ""
    looks = {
        "none": "",
        "views": f"mean of {summary['looks']} views",
        "dihedral": f"mean of {summary['looks']} flips and turns",
    }[summary["average"]]
    others = ", ".join(member["run"] for member in summary["members"][1:])
    return ", ".join(filter(None, [looks, others and f"averaged with {others}"]))


# Rows of images, some at a time, and the views of such rows.
_Looks: TypeAlias = tuple[Iterable[torch.Tensor], Callable[[torch.Tensor], Iterator[View]]]


@dataclass(frozen=True)
class Members:
    """Runs whose grey maps are averaged, and over what of each image.

    runs     the first keeps the scores
    average  none: the clean view alone; views: as many views as test has in the store;
             dihedral: the eight flips and quarter turns of the clean image, encoded anew
    """

    runs: Sequence[Run]
    average: Average = "none"

    @property
    def alone(self) -> bool:
        """Whether it is one run on clean views: nothing is averaged."""
        return len(self.runs) == 1 and self.average == "none"

    @cached_property
    def digests(self) -> list[str]:
        """sha256 of each run's weights."""
        return [sha256_of([run.path / "best.safetensors"]) for run in self.runs]

    @property
    def mark(self) -> str:
        """What its files' name says of it: -AVERAGE, and -with-DIGEST of the others' weights."""
        mark = "" if self.average == "none" else f"-{self.average}"
        if others := sorted(self.digests[1:]):
            mark += f"-with-{hashlib.sha256(''.join(others).encode()).hexdigest()[:8]}"
        return mark

    def looks(self, images: Images) -> int:
        """How often a run looks at an image."""
        return len(TURNS) if self.average == "dihedral" else self.views(images)

    def views(self, images: Images) -> int:
        """How many views of each sample are read from a store."""
        if self.average != "views":
            return 1
        assert isinstance(images, LatentStore), "require_fit has asked for it"
        return images.eval_views

    def decodes(self, images: Images) -> int:
        """Decodes of an image."""
        return self.looks(images) * len(self.runs)

    def describe(self, images: Images, count: int) -> dict[str, Any]:
        """What a summary says of it: average, members, looks, encodes."""
        return {
            "average": self.average,
            "members": [
                {"run": run.path.name, "weights_digest": digest}
                for run, digest in zip(self.runs, self.digests, strict=True)
            ],
            "looks": self.looks(images),
            "encodes": self.looks(images) * count if self.average == "dihedral" else 0,
        }

    def lineage(self) -> pl.DataFrame | None:
        """What any of the runs has seen; None where it is not known of one."""
        lineages = [run.lineage() for run in self.runs]
        known = [one for one in lineages if one is not None]
        return pl.concat(known) if len(known) == len(lineages) else None

    def require_fit(self, images: Images, *, more: bool = False) -> None:
        """Raise ArtefactError or UsageError unless the runs can be scored, averaged, on images.

        more  as for `lmm.evaluate.scorable.require_scorable`
        """
        if not self.alone:
            require_latents(self.runs)
        for run in self.runs:
            require_scorable(run, images, more=more)
        if self.average == "views" and self.views(images) == 1:
            raise UsageError(
                f"{images.url} has no view beside the clean image to average over",
                "gms-lmm encode … --views 8 --eval-views 8, or --average dihedral",
            )


def averaged_greys(members: Members, cells: Cells) -> Iterator[torch.Tensor]:
    """Grey maps of the cells' images, some at a time, in order of sample_id.

    returns  (≤ n, 1 + runs, S, S) float32 in [0, 1]: their mean; then each run's alone, of the
             clean view. A map does not depend on how many come with it
    raises   as `lmm.evaluate.native.require_originals` and `original_images` do, where images are
             encoded
    """
    models = [run.model(cells.decoder.tokenizer.device) for run in members.runs]
    rows, views = _encoded_anew(cells) if members.average == "dihedral" else _stored(members, cells)

    @torch.inference_mode()
    def greys(batch: torch.Tensor) -> torch.Tensor:
        return average_greys(models, cells.decoder, views(batch))

    for batch in rows:
        yield next(in_batches(greys, batch, cells.decoder.at_a_time))


def _stored(members: Members, cells: Cells) -> _Looks:
    """Rows of places in order of sample_id, and their views as they lie in the store."""
    store, decoder = cells.store, cells.decoder
    means = torch.cat([part.image_mean for part in cells.parts], dim=1)[:, cells.order]
    ids = pl.DataFrame({"sample_id": [cells.sample_ids[place] for place in cells.order]})
    plans = [plan_of(store.attributes, ids, [view]) for view in range(members.views(store))]

    def views(places: torch.Tensor) -> Iterator[View]:
        rows = places.tolist()
        z_images = (decoder.scaled(means[view, rows]) for view in range(len(plans)))
        return stored_views(z_images, [plan[rows] for plan in plans])

    return torch.arange(len(cells)).split(decoder.at_a_time), views


def _encoded_anew(cells: Cells) -> _Looks:
    """Rows of images in order of sample_id, and their turns through E as the store has it."""
    store, tokenizer = cells.store, cells.decoder.tokenizer
    require_originals(store)
    ids = [cells.sample_ids[place] for place in cells.order]
    images = original_images(store.source(), store.size, ids)
    precision = store.attributes["preprocessing"]["precision"]

    def rows() -> Iterator[torch.Tensor]:
        while batch := list(islice(images, cells.decoder.at_a_time)):
            yield torch.from_numpy(np.stack(batch)).to(tokenizer.device).permute(0, 3, 1, 2)

    def views(images_u8: torch.Tensor) -> Iterator[View]:
        return turned_views(images_u8, lambda pixels: image_latent(tokenizer, pixels, precision))

    return rows(), views
