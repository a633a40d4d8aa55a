"""A network in pixels: built as MONAI has it, read from a run, and what it predicts of images."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmm.baseline.settings import NETWORKS
from lmm.latents import images_at_a_time, in_batches
from lmm.run import Run
from lmm.run.checkpoint import load_weights, read_checkpoint
from pipeline.device import autocast
from pipeline.errors import ArtefactError, UsageError
from pipeline.pixels import to_pm1


def build_network(name: str, size: int) -> nn.Module:
    """A network with new weights, from torch's generator: pixels → logits of the mask.

    It takes (B, 3, size, size) float32 in [-1, 1] and gives (B, 1, size, size).

    name    one of `lmm.baseline.settings.NETWORKS`
    raises  UsageError without MONAI, or what it needs for this network
    """
    known = NETWORKS[name]
    of_size = {"img_size": size} if name == "unetr" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is optional to MONAI, or will be in a later
            from monai.networks import nets

            network: nn.Module = getattr(nets, known.monai)(
                spatial_dims=2, in_channels=3, out_channels=1, **known.sizes, **of_size
            )
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"--model {name} is MONAI's {known.monai}, which cannot be built: {reason}",
            "pip install 'gms-lmm[peers]'",
        ) from error
    # Convolutions over channels that lie side by side take a fraction of the time in bf16.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def describe_network(name: str) -> dict[str, Any]:
    """What a run says of its model."""
    known = NETWORKS[name]
    return {"name": name, "class": f"monai.networks.nets.{known.monai}", **known.sizes}


def network_of(run: Run, device: torch.device) -> nn.Module:
    """The selected network of a baseline, in evaluation mode.

    raises  ArtefactError when its weights are gone or damaged, or of a network not known
    """
    name = run.description["model"]["name"]
    if name not in NETWORKS:
        raise ArtefactError(f"{run.path} is of the network {name!r}, which is not known", "update")
    assert run.data is not None
    network = build_network(name, run.data["size"])
    load_weights(network, read_checkpoint(run.path / "best.safetensors")[0])
    return network.to(device).eval()


def require_latents(runs: Sequence[Run]) -> None:
    """Raise UsageError for a baseline among runs whose grey maps are to be averaged."""
    for run in runs:
        if run.is_baseline:
            raise UsageError(
                f"{run.path} is a baseline, and maps of models in latents alone are averaged",
                "the baseline alone, without --average and another --run",
            )


def logits_of(network: nn.Module, image_pm1: Tensor, precision: str) -> Tensor:
    """What a network gives: (B, 3, S, S) float32 in [-1, 1] → (B, S, S) float32."""
    with autocast(image_pm1.device, precision):
        logits: Tensor = network(image_pm1.contiguous(memory_format=torch.channels_last))
    return logits.squeeze(1).float()


def grey_maps(
    network: nn.Module, images_u8: Tensor, precision: str = "fp32", count: int | None = None
) -> Iterator[Tensor]:
    """Grey masks without gradients, in batches of one shape; see `lmm.latents.in_batches`.

    images_u8  (n, 3, S, S) uint8, 0…255, on any device
    count      images in a batch; None for as many as suit the network's device
    yields     (≤ count, S, S) float32 in [0, 1]: the sigmoid of the logits
    """
    device = next(network.parameters()).device

    @torch.inference_mode()
    def greys(batch_u8: Tensor) -> Tensor:
        return logits_of(network, to_pm1(batch_u8.to(device)), precision).sigmoid()

    was_training = network.training
    network.eval()
    yield from in_batches(greys, images_u8, count or images_at_a_time(device))
    network.train(was_training)
