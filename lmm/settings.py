"""What a training run is asked to do: every setting with its default, its range and its words.

Free of torch, so that a command line can say them without waiting for it.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Protocol, get_args

from pipeline.errors import UsageError

LEVELS = ("level2", "level1", "out")  # supervised levels of LatentMappingModel; level3 is not

# Each loss by name, and the parts of lmm.losses that it is the sum of.
LOSSES: Mapping[str, tuple[str, ...]] = {"lm": ("lm",), "seg": ("seg",), "compound": ("lm", "seg")}


@dataclass(frozen=True)
class Setting:
    """How one setting is explained, and what it may be.

    help      its words on the command line
    kind      int, float, str or bool
    choices   the words it may be; None for any
    some      whether it is several of the choices, with commas between them
    automatic whether the command line offers `auto` too, and takes it where nothing is said
    minimum   the smallest number it may be
    above     the number it has to be greater than
    maximum   the largest number it may be
    """

    help: str
    kind: type
    choices: tuple[str, ...] | None = None
    some: bool = False
    automatic: bool = False
    minimum: int | None = None
    above: int | None = None
    maximum: int | None = None

    def fault(self, value: Any) -> tuple[str, str] | None:
        """What is wrong with a value, and what to do about it; None where nothing is."""
        words = value.split(",") if self.some else [value]
        unknown = [word for word in words if self.choices and word not in self.choices]
        if unknown:
            return f"{unknown[0]} is not known", f"one of {', '.join(self.choices or ())}"
        if self.minimum is not None and value < self.minimum:
            return f"{value} is too small", f"at least {self.minimum}"
        if self.above is not None and not value > self.above:
            return f"{value} is too small", f"more than {self.above}"
        if self.maximum is not None and value > self.maximum:
            return f"{value} is too large", f"at most {self.maximum}"
        return None


def setting(default: Any, help: str, **limits: Any) -> Any:  # noqa: A002, as click calls it
    """A field of settings: its default, its words, and what `Setting` knows of limits."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class TrainSettings:
    """What a training run is asked to do; the defaults are the paper's where the paper has one.

    A setting's words, default and range stand here alone: the options of `gms-lmm train` are made
    of them, and config/schema.yaml is held against them. What the words leave out:

    posterior   see `lmm.latents.Latents.batch`
    precision   of LMM and decoder; losses are float32 in either
    val_every   the last epoch is always validated
    residency   see `lmm.batches.open_batches`
    compile     see `lmm.step.compiled`
    deterministic  a CPU's kernels are so anyway

    raises  UsageError when a setting is out of its range, or two do not fit together
    """

    loss: str = setting(
        "compound", "Latent loss, Dice loss through a decoder, or their sum.", choices=tuple(LOSSES)
    )
    seg_decoder: str = setting(
        "student",
        "What the Dice loss decodes with: the frozen decoder, or a small network taught by it.",
        choices=("full", "student"),
    )
    seg_levels: str = setting(
        ",".join(LEVELS),
        "Levels of the model that the Dice loss decodes; fewer weigh as much as all.",
        choices=LEVELS,
        some=True,
    )
    seg_every: int = setting(
        1,
        "Steps from one with a Dice loss to the next; it weighs as many times more there.",
        minimum=1,
    )
    epochs: int = setting(
        1000,
        "Passes over the training samples, each in one randomly chosen view.",
        minimum=1,
    )
    batch_size: int = setting(8, "Samples a step.", minimum=1)
    lr: float = setting(2e-3, "Peak learning rate of AdamW.", above=0)
    width: int = setting(32, "Channels of the LMM's first level, a multiple of 16.", minimum=16)
    seed: int = setting(0, "Seed of weights, order and noise.")
    posterior: str = setting(
        "mean",
        "Image latent fed to the LMM: posterior mean, a sample, or as the GMS authors do.",
        choices=("mean", "sample", "gms"),
    )
    precision: str = setting(
        "fp32",
        "Arithmetic; auto is bf16 where the hardware computes in it.",
        choices=("fp32", "bf16"),
        automatic=True,
    )
    val_every: int = setting(5, "Epochs between validations with the frozen decoder.", minimum=1)
    residency: str = setting(
        "auto",
        "Where the training latents are: the first that has room for them, or as you say.",
        choices=("auto", "device", "ram", "stream"),
    )
    memory_gib: float | None = setting(
        None, "GiB that they may take there.  [default: half of what there is]", above=0
    )
    select_on: str = setting(
        "val",
        "Split that chooses the epoch; test is the GMS authors' protocol and marks the run; with "
        "none val is trained on too, and the last epoch kept.",
        choices=("val", "test", "none"),
    )
    fold: int | None = setting(
        None, "Fold of train to leave out, for evaluate --split fold to score.", minimum=0
    )
    views: int | None = setting(
        None,
        "Views of the store to train on: the clean one and those after it.  [default: all]",
        minimum=1,
    )
    share: float | None = setting(
        None,
        "Share of the training samples to train on, drawn by --seed, groups and twins as a whole; "
        "a smaller share is part of a larger.  [default: all]",
        above=0,
        maximum=1,
    )
    deterministic: bool = setting(False, "Only kernels that give the same bits each time.")
    compile: bool = setting(False, "Compile the model first: a minute, then faster steps.")

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.loss == "seg" and self.seg_every > 1:
            raise UsageError(
                f"--seg-every {self.seg_every} leaves steps of --loss seg with no loss at all",
                "--loss compound, or --seg-every 1",
            )

    @property
    def has_dice(self) -> bool:
        """Whether the loss has a Dice term, which needs masks and a decoder."""
        return "seg" in LOSSES[self.loss]

    @property
    def dice_levels(self) -> list[str]:
        """Levels of the LMM that the Dice loss decodes."""
        return self.seg_levels.split(",")

    @property
    def supervised_levels(self) -> list[str]:
        """Levels of the LMM that the loss takes."""
        return self.dice_levels if self.loss == "seg" else list(LEVELS)

    @property
    def has_noise(self) -> bool:
        """Whether noise of the posterior is added, which needs its standard deviation."""
        return self.posterior != "mean"

    @property
    def has_student(self) -> bool:
        """Whether the Dice loss decodes with a student."""
        return self.has_dice and self.seg_decoder == "student"


class LoopSettings(Protocol):
    """What the loop of training reads of a run's settings; each as `TrainSettings` has it."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def val_every(self) -> int: ...
    @property
    def select_on(self) -> str: ...
    @property
    def deterministic(self) -> bool: ...


def known_settings(settings: type = TrainSettings) -> dict[str, Setting]:
    """Every setting of a training run, or of another dataclass of such fields, by its name."""
    return {one.name: Setting(kind=_kind(one), **one.metadata) for one in fields(settings)}


def require_in_range(settings: Any) -> None:
    """Raise UsageError for the first of the settings of a run that is none it may be."""
    for name, one in known_settings(type(settings)).items():
        value = getattr(settings, name)
        if value is not None and (fault := one.fault(value)):
            raise UsageError(f"--{name.replace('_', '-')} {fault[0]}", fault[1])


def _kind(one: Field[Any]) -> type:
    """Of `float | None`, the float."""
    kind: type = (get_args(one.type) or (one.type,))[0]
    return kind
