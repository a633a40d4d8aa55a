"""Scores of a run on one split of a store: a table with one row an image, and a summary."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn

from lmm.baseline.network import network_of
from lmm.baseline.pixels import Images, read_pixels
from lmm.decoder import THRESHOLD
from lmm.evaluate.ceiling import ceiling_of
from lmm.evaluate.cells import Cells, PixelCells, read_cells
from lmm.evaluate.evaluation import Evaluation, Wanted
from lmm.evaluate.files import Scored, find_scored, mask_png, require_unseen
from lmm.evaluate.looking import Looked, Truth
from lmm.evaluate.members import Members, averaged_greys
from lmm.evaluate.twins import twins_in_train
from lmm.metrics import HD95, KEYS, summarise
from lmm.run import Run
from lmm.splits import FOLD, digests_of_folds
from lmm.student.file import student_of
from lmm.student.network import StudentDecoder
from pipeline.errors import UsageError
from pipeline.store import LatentStore
from pipeline.telling import Progress


@dataclass(frozen=True)
class Predicted:
    """What a model makes of cells, in order of sample_id.

    z_mask_hat  (n, C, h, w) float32, scaled; None of a network in pixels, and of an average
    masks       (n, H, W) bool: grey maps above 0.5
    """

    z_mask_hat: torch.Tensor | None
    masks: np.ndarray


SCORES_ALONE = Wanted()


def evaluate(
    run: Run,
    images: Images,
    split: str,
    device: torch.device,
    wanted: Wanted = SCORES_ALONE,
    progress: Progress | None = None,
    *,
    others: Sequence[Run] = (),
    allow_seen: bool = False,
) -> Evaluation:
    """Predict, decode with the frozen decoder and score every clean image of a split.

    LMM and decoder run in float32, whatever the run was trained in, so that scores of runs compare;
    so does the network of a baseline, which reads the images themselves.

    images      a store; for a baseline also a manifest at the run's size
    progress    called with (decodes done, decodes in all): one an image, with the ceiling three;
                of averages one an image, look and run
    others      runs whose grey maps are averaged with those of `run`, which keeps the scores
    allow_seen  score images that a run was trained or selected on, and say so in name and summary
    raises      ArtefactError when the store was made with another tokenizer than a run was
                trained on, when a run has seen any of the images, or when a run without a student
                is asked for its; UsageError for the student of an average, a baseline in one, views
                of a store without any, or runs to which the split is not one set of images; as
                `read_cells` does; with native scores, as `lmm.evaluate.native.Originals` does;
                under `dihedral` as `lmm.evaluate.members.averaged_greys` does
    """
    members = Members((run, *others), wanted.average)
    members.require_fit(images, more=wanted.ceiling or wanted.student)
    if wanted.student and not members.alone:
        raise UsageError("a student is of one run without averaging", "leave --student out")
    scored = find_scored(run, images, split, others=others, mark=members.mark)
    if not allow_seen:
        for one in members.runs:
            require_unseen(one, images, split, find_scored(one, images, split))
    student = student_of(run, device) if wanted.student else None
    started = time.monotonic()
    cells = _read(members, images, split, device)
    truth = Truth(images, cells, wanted.hd95)
    looked = Looked(members, truth, wanted, progress)
    predicted = _predicted(members, cells, device, looked)
    seconds = time.monotonic() - started
    scores = truth.score(predicted.masks)
    columns, summary = dict(scores), {"split": split, **truth.summary(scores)}
    summary |= _what_was_scored(run, images, scored, wanted.hd95)
    if not members.alone:
        summary |= members.describe(images, len(truth.ids))
    columns |= looked.columns()
    summary |= looked.summaries(scores)
    if split == FOLD:
        summary["folds"] = digests_of_folds(images.samples)
    if student:
        summary["student"] = _of_student(student, predicted, truth)
    if wanted.ceiling:
        assert isinstance(cells, Cells), "require_fit has asked for it"
        summary["ceiling"] = ceiling_of(cells, split, looked.tick, wanted.hd95).summary
    twins = twins_in_train(members.lineage(), images.samples, truth.ids)
    if twins is not None:
        columns["twin_in_train"] = twins
        if twins.any():
            summary["without_twins"] = truth.summary(scores, ~twins) if not twins.all() else None
    per_image = _per_image(truth, columns, predicted.masks)
    if by_class := _by_class(per_image, list(scores)):
        summary["by_class"] = by_class
    return Evaluation(
        scored.name,
        per_image,
        summary,
        predicted.masks,
        native=looked.originals.predictions if looked.originals else None,
        greys=looked.greys if wanted.grey else None,
        seconds=seconds,
    )


def _read(members: Members, images: Images, split: str, device: torch.device) -> Cells | PixelCells:
    """The cells of a store that models map, or the pixels that a network in pixels takes."""
    run = members.runs[0]
    if isinstance(images, LatentStore) and not run.is_baseline:
        return read_cells(images, [split], device, run.fold, views=members.views(images))
    return PixelCells(read_pixels(images, split, run.fold))


def _predicted(
    members: Members, cells: Cells | PixelCells, device: torch.device, look: Looked
) -> Predicted:
    if members.alone:
        run = members.runs[0]
        model = network_of(run, device) if run.is_baseline else run.model(device)
        return predict(model, cells, look)
    assert isinstance(cells, Cells), "require_fit has asked for it"
    return _averaged(members, cells, look)


def predict(
    model: nn.Module,
    cells: Cells | PixelCells,
    look: Callable[[torch.Tensor], None] | None = None,
) -> Predicted:
    """Predict in float32 and decode with the frozen decoder.

    model  z_image → {"out": Ẑ_M, …}, both (B, C, h, w) and scaled; of pixels a network as
           `lmm.baseline.network.build_network` gives it, which needs no decoder
    look   called with grey maps (≤ n, H, W) in [0, 1], some at a time, in order of sample_id
    """
    z_mask_hat, maps = cells.predicted(model)
    masks = []
    for greys in maps:
        masks.append((greys > THRESHOLD).cpu().numpy())
        if look:
            look(greys)
    return Predicted(z_mask_hat, np.concatenate(masks))


def _averaged(members: Members, cells: Cells, look: Callable[..., None]) -> Predicted:
    """As `predict`, of runs and looks together; `look` gets what each run says alone as well."""
    masks = []
    for maps in averaged_greys(members, cells):
        greys, *alone = maps.unbind(dim=1)
        masks.append((greys > THRESHOLD).cpu().numpy())
        look(greys, alone)
    return Predicted(None, np.concatenate(masks))


def _of_student(student: StudentDecoder, predicted: Predicted, truth: Truth) -> dict[str, Any]:
    """What a student's masks score, and how well they agree with those of the frozen decoder."""
    assert predicted.z_mask_hat is not None, "of a baseline and of an average it is refused"
    scores = truth.score(student.masks(predicted.z_mask_hat).cpu().numpy())
    agreement = student.agreement(predicted.z_mask_hat, torch.from_numpy(predicted.masks))
    return {**truth.summary(scores), "agreement": agreement}


def _per_image(truth: Truth, columns: dict[str, Any], predictions: np.ndarray) -> pl.DataFrame:
    named = truth.images.samples.select("sample_id", "dataset", "class")
    return (
        pl.DataFrame({"sample_id": truth.ids})
        .join(named, on="sample_id", maintain_order="left")
        .with_columns(**{name: pl.Series(values) for name, values in columns.items()})
        .with_columns(prediction_png=pl.Series([mask_png(mask) for mask in predictions]))
    )


def _what_was_scored(run: Run, images: Images, scored: Scored, hd95: HD95) -> dict[str, Any]:
    """What table and page say of scores beside them, and where the images are."""
    store = images if isinstance(images, LatentStore) else None
    return {
        "store": store and store.url,
        **({} if store else {"manifest": images.url}),
        "hd95_definition": hd95,
        "dataset": ", ".join(sorted(scored.samples["dataset"].unique())),
        "tokenizer": None if run.is_baseline or not store else store.tokenizer["name"],
        "size": images.size,
        "images_digest": scored.digest,
        "seen": scored.counts,
    }


def _by_class(per_image: pl.DataFrame, columns: list[str]) -> dict[str, Any]:
    parts = per_image.group_by("class", maintain_order=True)
    means = {
        str(name): _means(summarise({key: part[key].to_numpy() for key in columns}))
        for (name,), part in parts
        if name is not None
    }
    return dict(sorted(means.items()))


def _means(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in ("n", *KEYS)}
