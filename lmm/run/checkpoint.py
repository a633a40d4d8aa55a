"""Tensors on disk: weights and optimiser state under flat names, in safetensors files."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ArtefactError
from pipeline.files import replace_file


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by its first name; the GMS authors register two twice."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in own.items()}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into the model; raises ArtefactError when names or shapes differ."""
    own = weights_of(model)
    wrong = own.keys() ^ weights.keys() or {
        name for name in own if own[name].shape != weights[name].shape
    }
    if wrong:
        raise ArtefactError(
            f"the weights do not fit the model: {len(wrong)} differ, first {sorted(wrong)[0]}",
            "use the run.json that was written with these weights, and the version it names",
        )
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def optimiser_state_of(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under flat names: `<parameter index>.<what>`."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def load_optimiser_state(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_state_of` gave."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if value.ndim:
            # A fused update walks through memory: moments must lie there as their parameter does.
            value = torch.empty_like(parameters[int(index)]).copy_(value)
        state.setdefault(int(index), {})[key] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def training_state_of(
    model: nn.Module, optimiser: torch.optim.Optimizer, part: str = "model"
) -> dict[str, Tensor]:
    """What training goes on from: the model's weights under `part`, and its optimiser's tensors."""
    weights = named(part, weights_of(model))
    return weights | named("optimiser", optimiser_state_of(optimiser))


def load_training_state(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    tensors: dict[str, Tensor],
    part: str = "model",
) -> None:
    """Put back what `training_state_of` gave; raises as `load_weights` does."""
    load_weights(model, part_of(tensors, part))
    load_optimiser_state(optimiser, part_of(tensors, "optimiser"))


def named(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `<part>.<name>`, so that several parts go into one file."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def part_of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part under their own names; the inverse of `named`."""
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def write_checkpoint(path: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Tensors and a JSON-able progress in one safetensors file, replaced as a whole."""
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        metadata={"progress": json.dumps(progress)},
    )
    replace_file(path, content)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress of a file of `write_checkpoint`; ArtefactError when there is none."""
    if not path.exists():
        raise ArtefactError(f"{path} is missing", "train the run again, or with --resume")
    try:
        with safetensors.safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} is damaged: {error}", "train the run again") from error
    return tensors, progress
