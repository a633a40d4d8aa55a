"""Which epoch of a run is kept: the latest that no other beats by more than chance."""

from collections.abc import Sequence

import numpy as np

from lmm.latents import Latents
from lmm.metrics import Floats, score
from lmm.model import predict_latents
from lmm.settings import TrainSettings
from lmm.step import Learner


def choose(epochs: Sequence[int], dsc: Floats, settings: TrainSettings) -> int:
    """The epoch that is kept of those validated so far.

    A function of all validations and nothing else, so that a choice can be made again from a run's
    validations.parquet. Today's rule looks at each epoch once, as it comes; see `is_kept`.

    epochs  k of them, in order
    dsc     (k, n) of each image, fractions
    """
    kept = peak = 0
    for this in range(1, len(epochs)):
        if is_kept(dsc[this], dsc[peak], settings.select_on):
            kept = this
        if dsc[this].mean() > dsc[peak].mean():
            peak = this
    return epochs[kept]


def contenders(epochs: Sequence[int], dsc: Floats, settings: TrainSettings) -> list[int]:
    """Epochs so far whose weights have to stay: `choose` may yet take them in place of its choice.

    The weights of the choice are kept in any case. Under a rule that comes back to an epoch the
    choice is one of these too, as another may take its place for a time; and as each costs the
    disk a whole set of weights, they have to be few. An epoch that has given way under today's
    rule is not chosen again.

    epochs, dsc  as in `choose`
    """
    return []


def is_kept(dsc: Floats, peak: Floats, select_on: str) -> bool:
    """Whether an epoch is kept in place of those before it.

    On val it is unless the best mean so far leads by more than one standard error, the difference
    being taken image by image. Val parts are small, and the largest of many noisy means is as often
    luck as merit; where nothing tells two epochs apart, the later has the lower learning rate
    behind it. On test, the GMS authors' protocol, the highest mean is kept.

    dsc, peak  (n,) of this epoch and of the one with the highest mean before it
    source     the one-standard-error rule: Breiman et al., Classification and Regression Trees,
               1984, section 3.4.3
    """
    lead = peak - dsc
    if select_on == "test" or len(lead) == 1:
        return bool(lead.mean() < 0)
    return bool(lead.mean() <= lead.std(ddof=1) / np.sqrt(len(lead)))


def validate(learner: Learner, latents: Latents) -> tuple[dict[str, float], Floats]:
    """Scores of the decoded predictions on a split's clean images.

    returns  as the log names them, mean DSC and IoU (fractions) under the frozen decoder and, with
             a student, the mean DSC between its masks and the frozen decoder's; (n,) DSC
    """
    settings = learner.settings
    z_mask_hat = predict_latents(learner.model, latents, settings.precision)
    masks = learner.teacher.masks(z_mask_hat)
    scores = score(masks, latents.clean_masks)
    line = {f"{settings.select_on}_{name}": float(scores[name].mean()) for name in ("dsc", "iou")}
    if learner.distillation:
        agreement = learner.distillation.decoder.agreement(z_mask_hat, masks)
        if agreement is not None:
            line["student_agreement"] = agreement
    return line, scores["dsc"]
