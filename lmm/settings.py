"""What a training run is asked to do, checked and spelled out before anything is read."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from lmm.latents import POSTERIORS, SplitReader
from lmm.losses import LEVELS, LOSS_KINDS
from lmm.model import LatentMappingModel
from pipeline.errors import UsageError
from pipeline.store import LatentStore

SEG_DECODERS = ("full", "student")
RESIDENCIES = ("auto", "device", "ram", "stream")


@dataclass(frozen=True)
class TrainSettings:
    """What a training run is asked to do; the defaults are the paper's where the paper has one.

    loss        lm, seg or compound
    seg_decoder full, the frozen decoder, or student, a small network taught to decode as it does
    seg_levels  levels of the LMM that the Dice loss decodes, with commas between them
    seg_every   steps between two with a Dice loss
    epochs      passes over the training samples, each sample in one randomly chosen view
    lr          peak learning rate of AdamW, after 5 epochs of warm-up, before cosine decay
    width       channels of the LMM's first level
    posterior   mean, sample or gms; see `Latents.batch`
    precision   fp32 or bf16 arithmetic of LMM and decoder; losses are float32 in either
    val_every   epochs between validations; the last epoch is always validated
    residency   auto, device, ram or stream; see `lmm.batches.open_batches`
    memory_gib  GiB that latents may take in memory; None for half of what there is
    select_on   split whose DSC chooses the epoch; `test` is the GMS authors' own protocol
    deterministic  only kernels that give the same bits each time; a CPU's do so anyway
    compile     the LMM in kernels that torch generates for it; see `lmm.step.supervised`
    """

    loss: str = "compound"
    seg_decoder: str = "student"
    seg_levels: str = ",".join(LEVELS)
    seg_every: int = 1
    epochs: int = 1000
    batch_size: int = 8
    lr: float = 2e-3
    width: int = 32
    seed: int = 0
    posterior: str = "mean"
    precision: str = "fp32"
    val_every: int = 5
    residency: str = "auto"
    memory_gib: float | None = None
    select_on: str = "val"
    deterministic: bool = False
    compile: bool = False

    @property
    def has_dice(self) -> bool:
        """Whether the loss has a Dice term, which needs masks and a decoder."""
        return self.loss != "lm"

    @property
    def dice_levels(self) -> list[str]:
        """Levels of the LMM that the Dice loss decodes."""
        return self.seg_levels.split(",")

    @property
    def has_student(self) -> bool:
        """Whether the Dice loss decodes with a student."""
        return self.has_dice and self.seg_decoder == "student"

    def check(self, store: LatentStore) -> None:
        """Raise UsageError when settings and store do not fit together."""
        for name, value, known in (
            ("loss", self.loss, LOSS_KINDS),
            ("posterior", self.posterior, POSTERIORS),
            ("seg-decoder", self.seg_decoder, SEG_DECODERS),
            ("residency", self.residency, RESIDENCIES),
            ("select-on", self.select_on, ("val", "test")),
            *(("seg-levels", level, LEVELS) for level in self.dice_levels),
        ):
            if value not in known:
                raise UsageError(f"--{name} {value} is not known", f"one of {', '.join(known)}")
        if self.loss == "seg" and self.seg_every > 1:
            raise UsageError(
                f"--seg-every {self.seg_every} leaves steps of --loss seg with no loss at all",
                "--loss compound, or --seg-every 1",
            )
        if self.posterior != "mean" and store.tokenizer["deterministic"]:
            raise UsageError(
                f"--posterior {self.posterior} needs a posterior, and tokenizer "
                f"{store.tokenizer['name']!r} is deterministic",
                "--posterior mean",
            )


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Whole batches only, as the authors train; one smaller batch when there is no whole one."""
    return max(1, samples // batch_size)


def learning_rate(epoch: int, settings: TrainSettings) -> float:
    """Learning rate of epoch 1…epochs: linear warm-up, then a cosine to zero, by epoch.

    Warm-up takes 5 epochs as in the GMS authors' code, or a tenth of a run shorter than 50.
    """
    warmup = min(5, settings.epochs // 10)
    if epoch <= warmup:
        return settings.lr * epoch / (warmup + 1)
    share = (epoch - 1 - warmup) / (settings.epochs - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * share))


def describe(store: LatentStore, settings: TrainSettings) -> dict[str, Any]:
    """The whole of a run before it starts: settings, parameters, steps, bytes to read.

    raises  UsageError for settings that do not fit the store; ArtefactError when it is unfinished
    """
    settings.check(store)
    reader = SplitReader(store, "train", masks=settings.has_dice)
    samples = len(reader.places)
    return {
        **asdict(settings),
        "samples": samples,
        "views": store.views,
        "parameters": LatentMappingModel(store.latent_shape[0], settings.width).parameter_count,
        "steps": settings.epochs * steps_per_epoch(samples, settings.batch_size),
        "bytes_in_memory": samples * store.views * reader.cell_bytes,
    }
