"""Scores of a run on disk: what their files are called, and how they are written and found."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from lmm.baseline.pixels import Images, open_manifest
from lmm.run import Run, write_json
from lmm.run.lineage import ROLES, seen_among
from lmm.splits import images_digest, rows_of_split
from pipeline.errors import ArtefactError, UsageError
from pipeline.files import replacing
from pipeline.store import open_store
from pipeline.telling import some_of

FOLDER = "evaluate"  # of a run


@dataclass(frozen=True)
class Scored:
    """The images of a split as a run stands to them.

    samples  rows of the store
    digest   of the set; see `lmm.splits.images_digest`
    seen     sample_ids by role of those the run has seen; None where that is not known
    name     what the files of their scores are called
    """

    samples: pl.DataFrame
    digest: str
    seen: dict[str, list[str]] | None
    name: str

    @property
    def counts(self) -> dict[str, int] | None:
        """How many the run has seen, by role."""
        if self.seen is None:
            return None
        return {role: len(names) for role, names in self.seen.items()}


def find_scored(
    run: Run, images: Images, split: str, *, others: Sequence[Run] = (), mark: str = ""
) -> Scored:
    """What a run is scored on in a split of a store or manifest, and under which name.

    STORE-SPLIT is the very set of images that was this split when the run was made; any other, and
    all under imported weights, is STORE-DIGEST-SPLIT with the set's own digest: stores of two data
    sets may bear one name, and splits be drawn anew. Where the run has seen any, -seen follows.

    others  runs that are averaged with it: seen is what any of them has
    mark    what the name says of an average, before -seen: `evaluate` finds the plain by its name
    raises  ArtefactError when a run's lineage cannot be read; UsageError when the split is another
            set of images to one of the others, as folds are
    """
    samples = images.samples[rows_of_split(images.samples, split, run.fold)]
    digest = images_digest(samples)
    for one in others:
        if images_digest(images.samples[rows_of_split(images.samples, split, one.fold)]) != digest:
            raise UsageError(
                f"the {split} split of {one.path} is other images than that of {run.path}",
                "average runs of one fold, or score them on a split that they share",
            )
    seen = _seen_by([run, *others], samples)
    other = "" if run.held_out.get(split) == digest else f"-{digest[:8]}"
    seen_mark = "-seen" if seen and any(seen.values()) else ""
    return Scored(samples, digest, seen, f"{images.name}{other}-{split}{mark}{seen_mark}")


def _seen_by(runs: Sequence[Run], samples: pl.DataFrame) -> dict[str, list[str]] | None:
    """What any of some runs has seen; None where that is not known, and no other has seen any."""
    lineages = [run.lineage() for run in runs]
    known = [seen_among(one, samples) for one in lineages if one is not None]
    seen = {role: sorted({*chain(*(one[role] for one in known))}) for role in ROLES}
    return seen if len(known) == len(runs) or any(seen.values()) else None


def require_unseen(run: Run, images: Images, split: str, scored: Scored) -> None:
    """Raise ArtefactError when a run has seen any of the images that it is to be scored on."""
    if not scored.seen or not any(scored.seen.values()):
        return
    settings = run.description["settings"]
    by_test = " (--select-on test, the GMS authors' protocol)" * (settings["select_on"] == "test")
    words = {"train": "trained on", "select": f"chose its epoch{by_test}"}
    found = "; ".join(
        f"{len(names)} {words[role]}: {some_of(names, 3)}"
        for role, names in scored.seen.items()
        if names
    )
    chose = settings["select_on"]
    had = {"train", "val" if chose == "none" else chose}
    held_out = [name for name in run.held_out if name not in had]
    assert run.data is not None, "what imported weights have seen is not known"
    own = f"{run.data['url']} held out {', '.join(held_out) or 'no split'}"
    raise ArtefactError(
        f"{run.path} has seen images of the {split} split of {images.url}, which has "
        f"{scored.samples.height}; {found}",
        f"score it on images that it has not seen (when it was trained, {own}), or --allow-seen "
        "to score it all the same, marked so everywhere",
    )


def write_scores(folder: Path, name: str, per_image: pl.DataFrame, summary: dict[str, Any]) -> Path:
    """Write NAME.parquet and NAME.json into `folder`; returns the parquet's path."""
    path = folder / f"{name}.parquet"
    with replacing(path) as partial:
        per_image.write_parquet(partial)
    write_json(folder / f"{name}.json", summary)
    return path


def read_evaluations(run: Run, split: str) -> list[dict[str, Any]]:
    """The summaries that `evaluate` left in a run for a split, the samples held out first.

    One for each set of samples, the last written: a store may have been renamed in between.

    raises  ArtefactError when there is none
    """
    files = [*(run.path / FOLDER).glob(f"*-{split}.json")]
    files += (run.path / FOLDER).glob(f"*-{split}-seen.json")
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name))
    last = {one["images_digest"]: one for one in (json.loads(f.read_text()) for f in files)}
    if not last:
        fix = f"gms-lmm evaluate --run {run.path} {run.data_words} --split {split}"
        raise ArtefactError(f"{run.path} has not been scored on {split}", fix)
    digest = run.held_out.get(split)
    return sorted(last.values(), key=lambda one: (one["images_digest"] != digest, one["dataset"]))


def read_averages(run: Run, split: str) -> dict[str, dict[str, Any]]:
    """The summaries of averages that `evaluate` left in a run for a split, by their files' name.

    One for each set of samples, average and members, the last written; none where there is none.
    """
    files = [*(run.path / FOLDER).glob(f"*-{split}-*.json")]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name))
    last: dict[str, tuple[str, dict[str, Any]]] = {}
    for file in files:
        one = json.loads(file.read_text())
        if "average" in one and one["split"] == split:
            same = json.dumps([one["images_digest"], one["average"], one["members"]])
            last[same] = (file.stem, one)
    return dict(sorted(last.values(), key=itemgetter(0)))


def read_per_image(run: Run, images: Images, split: str) -> pl.DataFrame:
    """The table, one row an image, that `evaluate` left in a run for a split of these."""
    return read_table(run, find_scored(run, images, split).name)


def read_table(run: Run, name: str) -> pl.DataFrame:
    """The table, one row an image, that `evaluate` left in a run under a name."""
    return pl.read_parquet(run.path / FOLDER / f"{name}.parquet")


def open_images(run: Run, store: str | None, manifest: Path | None) -> Images:
    """The store at a URL, or the images of a manifest at a run's size.

    raises  UsageError for a manifest where the run maps latents; as opening them does
    """
    if store is not None:
        return open_store(store)
    assert manifest is not None, "one of them is given"
    if not run.is_baseline or run.data is None:
        raise UsageError(
            f"{run.path} maps latents, and {manifest} is a manifest", "--latents STORE"
        )
    return open_manifest(manifest, run.data["size"])


def where_scored(summary: Mapping[str, Any]) -> str:
    """URL of the store, or path of the manifest, whose images a summary is of."""
    return str(summary["store"] or summary["manifest"])


def open_scored(summary: Mapping[str, Any]) -> Images:
    """The store or the manifest whose images a summary is of; raises as opening them does."""
    if summary["store"]:
        return open_store(summary["store"])
    return open_manifest(summary["manifest"], summary["size"])


def mask_png(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as a 1-bit PNG."""
    content = io.BytesIO()
    Image.fromarray(mask).save(content, "png")
    return content.getvalue()
