"""What a baseline is asked to do: the networks known, and every setting of a run of one.

Free of torch, so that a command line can say them without waiting for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmm.settings import TrainSettings, require_in_range, setting
from pipeline.errors import UsageError

FRESH = "fresh"  # a new view of each sample in every epoch


@dataclass(frozen=True)
class Network:
    """A published network as MONAI has it.

    monai     its class in monai.networks.nets
    sizes     what that is told beside the channels in and out; the rest is MONAI's default
    lr        peak learning rate
    multiple  what a side of its images is a multiple of, px
    """

    monai: str
    sizes: Mapping[str, Any]
    lr: float
    multiple: int


# Ronneberger et al. 2015 with the normalisation and slope of nnU-Net; Oktay et al. 2018;
# Myronenko 2018; Hatamizadeh et al. 2022.
NETWORKS: Mapping[str, Network] = {
    "unet": Network("BasicUNet", {"features": [32, 64, 128, 256, 512, 32]}, 2e-3, 16),
    "attention-unet": Network(
        "AttentionUnet", {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2]}, 2e-3, 16
    ),
    "segresnet": Network("SegResNet", {"init_filters": 32}, 1e-3, 8),
    "unetr": Network("UNETR", {}, 1e-3, 16),
}


def _as_in_train(name: str) -> Any:
    """A setting with the words, default and range that it has in `TrainSettings`."""
    one = TrainSettings.__dataclass_fields__[name]
    return field(default=one.default, metadata=one.metadata)


@dataclass(frozen=True)
class BaselineSettings:
    """What a run of a baseline is asked to do; see `lmm.settings.TrainSettings`.

    views    K or FRESH: see `lmm.baseline.pixels.PixelBatches`
    seconds  see `lmm.baseline.budget.settle_epochs`
    lr       None takes the network's own, and is that from then on

    raises   UsageError when a setting is out of its range, or two do not fit together
    """

    model: str = setting("unet", "Network, as MONAI has it.", choices=tuple(NETWORKS))
    size: int = setting(224, "Side of image and mask, px.", minimum=8)
    views: int | str = setting(
        8, "Views of each sample, as in a store of so many; fresh: a new one in every epoch."
    )
    view_seed: int = setting(0, "Seed of the drawn views, as encode has it.")
    epochs: int = _as_in_train("epochs")
    seconds: int | None = setting(
        None, "Seconds that training may take, in place of --epochs: as many as fit.", minimum=1
    )
    batch_size: int = _as_in_train("batch_size")
    lr: float = setting(None, "Peak learning rate of AdamW.  [default: the network's own]", above=0)
    seed: int = setting(0, "Seed of weights and order.")
    precision: str = _as_in_train("precision")
    val_every: int = setting(5, "Epochs between validations.", minimum=1)
    select_on: str = setting(
        "val", "Split that chooses the epoch; test marks the run.", choices=("val", "test")
    )
    fold: int | None = _as_in_train("fold")
    deterministic: bool = _as_in_train("deterministic")

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.views != FRESH and not (isinstance(self.views, int) and self.views > 0):
            raise UsageError(f"--views {self.views} is no number of views", f"8, or {FRESH}")
        if self.size % self.network.multiple:
            step = self.network.multiple
            raise UsageError(
                f"--model {self.model} takes sides of a multiple of {step} px, not {self.size}",
                f"--size {-(-self.size // step) * step}",
            )
        if self.lr is None:  # frozen for others: a run says the rate that it was trained at
            object.__setattr__(self, "lr", self.network.lr)

    @property
    def network(self) -> Network:
        """The network that `model` names."""
        return NETWORKS[self.model]
