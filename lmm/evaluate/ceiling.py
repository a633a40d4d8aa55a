"""What D(E(M)) alone scores: the best that any LMM could do with a store's tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from lmm.evaluate.cells import Cells, read_cells
from lmm.metrics import FLAGS, HD95, KEYS, METRICS, Scores, score, summarise
from lmm.splits import groups_of
from pipeline.errors import InputError
from pipeline.fidelity import decoded_pm1, psnr_db
from pipeline.pixels import to_pm1
from pipeline.samples import original_images
from pipeline.store import LatentStore
from pipeline.telling import Progress, ticking

# Masks scored at a time, side by side in threads.
MASKS_A_BLOCK = 32


@dataclass(frozen=True)
class Ceiling:
    """What the frozen tokenizer alone keeps of a split.

    per_image  sample_id, dsc and iou (fractions), hd95 (px), missed, empty, false_alarm and
               image_psnr_db
               (null where the images could not be read); in order of sample_id
    summary    keys as `gms-lmm ceiling --json` prints them; no_psnr is why image_psnr_db is null
    """

    per_image: pl.DataFrame
    summary: dict[str, Any]


def ceiling(
    store: LatentStore,
    split: str,
    device: torch.device,
    progress: Progress | None = None,
    *,
    hd95: HD95 = "monai",
) -> Ceiling:
    """Decode the stored latents of every clean image and mask of a split, and score what comes.

    Masks: D(μ(M)), mean over channels, above 0.5, against the stored mask. Images: PSNR of D(μ(I)),
    clamped to the range of pixels, against the image resized as at encoding. D runs in float32, as
    in `evaluate`. Images that come back to the bit have an infinite PSNR and are left out of its
    mean.

    split     train, val, test, or all
    progress  called with (decodes done, decodes in all), two a sample: its mask's and its image's
    hd95      definition of HD95; see `lmm.metrics.score`
    raises    ArtefactError when the store is not finished, or its tokenizer's weights have changed;
              UsageError when the split has no sample
    """
    splits = sorted(store.samples["split"].drop_nulls().unique()) if split == "all" else [split]
    cells = read_cells(store, splits, device)
    return ceiling_of(cells, split, ticking(progress, 2 * len(cells)), hd95)


def ceiling_of(
    cells: Cells, split: str, tick: Callable[[int], None], hd95: HD95 = "monai"
) -> Ceiling:
    """As `ceiling`, of cells that have been read.

    split  what the summary calls them
    tick   called with how many decodes were done, two a sample in all
    """
    scores = _mask_scores(cells, tick, hd95)
    psnr = None
    try:
        psnr = _image_psnr(cells, tick)
        no_psnr = None if np.isfinite(psnr).any() else "every image comes back to the bit"
    except InputError as error:
        no_psnr = error.message
    columns = {"sample_id": cells.sample_ids, **scores, "image_psnr_db": psnr}
    per_image = pl.DataFrame(columns).sort("sample_id")
    summary = _summary(per_image, split, cells.store)
    return Ceiling(per_image, {**summary, "hd95_definition": hd95, "no_psnr": no_psnr})


def _mask_scores(cells: Cells, tick: Callable[[int], None], hd95: HD95) -> Scores:
    scores = []
    for batch in chain.from_iterable(part.clean(MASKS_A_BLOCK) for part in cells.parts):
        assert batch.mask is not None
        scores.append(score(cells.decoder.masks(batch.z_mask), batch.mask, hd95=hd95))
        tick(len(batch.mask))
    return {key: np.concatenate([block[key] for block in scores]) for key in scores[0]}


def _image_psnr(cells: Cells, tick: Callable[[int], None]) -> NDArray[np.float64]:
    """PSNR of every decoded image against its original, (n,) in dB, infinite where equal."""
    store, tokenizer = cells.store, cells.decoder.tokenizer
    originals = original_images(store.source(), store.size, cells.sample_ids)
    at_a_time = cells.decoder.at_a_time
    values = []
    for mean in chain.from_iterable(part.image_mean[0].split(at_a_time) for part in cells.parts):
        image_u8 = torch.from_numpy(np.stack(list(islice(originals, len(mean)))))
        truth_pm1 = to_pm1(image_u8.to(tokenizer.device).permute(0, 3, 1, 2))
        values.append(psnr_db(decoded_pm1(tokenizer, mean.float()), truth_pm1).cpu().numpy())
        tick(len(mean))
    return np.concatenate(values).astype(np.float64)


def _summary(per_image: pl.DataFrame, split: str, store: LatentStore) -> dict[str, Any]:
    scores = {key: per_image[key].to_numpy() for key in (*KEYS, *FLAGS)}
    worst = per_image.sort("dsc", "sample_id").row(0, named=True)
    psnr = per_image["image_psnr_db"].cast(pl.Float64)
    finite = psnr.filter(psnr.is_finite())
    return {
        "split": split,
        **summarise(scores, groups=groups_of(store.samples, per_image["sample_id"].to_list())),
        "worst": worst["sample_id"],
        **{f"{metric.key}_worst": metric.worst(per_image[metric.key]) for metric in METRICS},
        "image_psnr_db": finite.mean(),
        "image_psnr_db_worst": finite.min(),
        "tokenizer": store.tokenizer["name"],
    }
