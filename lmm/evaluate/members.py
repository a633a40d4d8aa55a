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
from lmm.encoder import image_latent
from lmm.evaluate.cells import Cells
from lmm.evaluate.native import require_originals
from lmm.latents import in_batches
from lmm.run import Run
from pipeline.errors import ArtefactError, UsageError
from pipeline.files import sha256_of
from pipeline.samples import original_images
from pipeline.store import LatentStore


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
    average  none: the clean view alone; views: all views of the store; dihedral: the eight flips
             and quarter turns of the clean image, encoded anew
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

    def looks(self, store: LatentStore) -> int:
        """How often a run looks at an image."""
        return {"none": 1, "views": store.views, "dihedral": len(TURNS)}[self.average]

    def views(self, store: LatentStore) -> int:
        """How many views of each sample are read from a store."""
        return store.views if self.average == "views" else 1

    def decodes(self, store: LatentStore) -> int:
        """Decodes of an image."""
        return self.looks(store) * len(self.runs)

    def describe(self, store: LatentStore, images: int) -> dict[str, Any]:
        """What a summary says of it: average, members, looks, encodes."""
        return {
            "average": self.average,
            "members": [
                {"run": run.path.name, "weights_digest": digest}
                for run, digest in zip(self.runs, self.digests, strict=True)
            ],
            "looks": self.looks(store),
            "encodes": self.looks(store) * images if self.average == "dihedral" else 0,
        }

    def lineage(self) -> pl.DataFrame | None:
        """What any of the runs has seen; None where it is not known of one."""
        lineages = [run.lineage() for run in self.runs]
        known = [one for one in lineages if one is not None]
        return pl.concat(known) if len(known) == len(lineages) else None

    def require_fit(self, store: LatentStore) -> None:
        """Raise ArtefactError or UsageError unless the runs can be averaged on a store."""
        for run in self.runs:
            require_same_latents(run, store)
        if self.average == "views" and store.views == 1:
            raise UsageError(
                f"{store.url} has no view beside the clean image to average over",
                "gms-lmm encode … --views 8, or --average dihedral",
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
    plans = [
        ids.join(store.plan.filter(view=view), on="sample_id", maintain_order="left")
        for view in range(members.views(store))
    ]

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


def require_same_latents(run: Run, store: LatentStore) -> None:
    """Raise ArtefactError unless the run's model maps latents of the kind the store holds."""
    fix = "evaluate on a store made with the tokenizer the run was trained on"
    trained, stored = run.tokenizer, store.tokenizer
    if trained is not None and trained["digest"] != stored["digest"]:
        raise ArtefactError(
            f"{run.path} was trained on latents of {trained['name']!r} ({trained['digest'][:12]}), "
            f"{store.url} holds those of {stored['name']!r} ({stored['digest'][:12]})",
            fix,
        )
    channels = run.description["model"]["latent_channels"]
    if channels != store.latent_shape[0]:
        raise ArtefactError(
            f"{run.path} maps latents of {channels} channels, "
            f"{store.url} has {store.latent_shape[0]}",
            fix,
        )
    own = run.description["store"]
    if own is not None and own["size"] != store.size:
        raise ArtefactError(
            f"{run.path} was trained at {own['size']} px, {store.url} is at {store.size} px", fix
        )
