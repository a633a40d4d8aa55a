"""What D(E(M)) alone scores: the best that any LMM could do with a store's tokenizer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from lmm.decoder import MaskDecoder, images_at_a_time
from lmm.latents import Latents, load_latents
from lmm.metrics import HD95, METRICS, Scores, score, summarise
from pipeline.errors import InputError
from pipeline.fidelity import decoded_pm1, psnr_db
from pipeline.images import ImageU8
from pipeline.pixels import to_pm1
from pipeline.samples import original_images
from pipeline.store import LatentStore
from pipeline.telling import Progress
from pipeline.tokenizer import Tokenizer, load_tokenizer_of

# Masks scored at a time, side by side in threads.
MASKS_A_BLOCK = 32


@dataclass(frozen=True)
class Ceiling:
    """What the frozen tokenizer alone keeps of a split.

    per_image  sample_id, dsc and iou (fractions), hd95 (px), missed, false_alarm, image_psnr_db
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
    parts = [load_latents(store, name, views=1, device=device) for name in splits]
    tokenizer = load_tokenizer_of(store.tokenizer, device)
    ids = [name for part in parts for name in part.sample_ids]
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, 2 * len(ids))

    scores = _mask_scores(parts, MaskDecoder(tokenizer), tick, hd95)
    psnr = None
    try:
        psnr = _image_psnr(parts, original_images(store.source(), store.size, ids), tokenizer, tick)
        no_psnr = None if np.isfinite(psnr).any() else "every image comes back to the bit"
    except InputError as error:
        no_psnr = error.message
    # A store that has grown holds its samples in order of arrival.
    per_image = pl.DataFrame({"sample_id": ids, **scores, "image_psnr_db": psnr}).sort("sample_id")
    summary = _summary(per_image, split, store)
    return Ceiling(per_image, {**summary, "hd95_definition": hd95, "no_psnr": no_psnr})


def _mask_scores(
    parts: Sequence[Latents], decoder: MaskDecoder, tick: Callable[[int], None], hd95: HD95
) -> Scores:
    scores = []
    for part, rows in _blocks(parts, MASKS_A_BLOCK):
        batch = part.batch(torch.zeros_like(rows), rows)
        assert batch.mask is not None
        scores.append(score(decoder.masks(batch.z_mask), batch.mask, hd95=hd95))
        tick(len(rows))
    return {key: np.concatenate([block[key] for block in scores]) for key in scores[0]}


@torch.inference_mode()
def _image_psnr(
    parts: Sequence[Latents],
    originals: Iterator[ImageU8],
    tokenizer: Tokenizer,
    tick: Callable[[int], None],
) -> NDArray[np.float64]:
    """PSNR of every decoded image against its original, (n,) in dB, infinite where equal."""
    values = []
    for part, rows in _blocks(parts, images_at_a_time(tokenizer.device)):
        image_u8 = torch.from_numpy(np.stack(list(islice(originals, len(rows)))))
        truth_pm1 = to_pm1(image_u8.to(tokenizer.device).permute(0, 3, 1, 2))
        output_pm1 = decoded_pm1(tokenizer, part.image_mean[0, rows].float())
        values.append(psnr_db(output_pm1, truth_pm1).cpu().numpy())
        tick(len(rows))
    return np.concatenate(values).astype(np.float64)


def _blocks(parts: Sequence[Latents], count: int) -> Iterator[tuple[Latents, torch.Tensor]]:
    for part in parts:
        for rows in torch.arange(len(part), device=part.device).split(count):
            yield part, rows


def _summary(per_image: pl.DataFrame, split: str, store: LatentStore) -> dict[str, Any]:
    scores = {key: per_image[key].to_numpy() for key in (*METRICS, "missed", "false_alarm")}
    worst = per_image.sort("dsc", "sample_id").row(0, named=True)
    psnr = per_image["image_psnr_db"].cast(pl.Float64)
    finite = psnr.filter(psnr.is_finite())
    return {
        "split": split,
        **summarise(scores),
        "worst": worst["sample_id"],
        "dsc_worst": worst["dsc"],
        "iou_worst": per_image["iou"].min(),
        "hd95_worst": per_image["hd95"].max(),
        "image_psnr_db": finite.mean(),
        "image_psnr_db_worst": finite.min(),
        "tokenizer": store.tokenizer["name"],
    }
