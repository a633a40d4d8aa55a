"""A run on disk: what it was asked to do, its weights, its log; and the authors' weights as a run.

run.json           format_version, settings, the store and tokenizer it was trained on, software
log.jsonl          one JSON object an epoch; the report reads only this
best.safetensors   weights of the epoch that the selection split chose
last.safetensors   weights, optimiser state and progress, from which --resume goes on
summary.json       what `train --json` printed, once the run is finished
"""

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lmm.model import LatentMappingModel
from pipeline.errors import ArtefactError, InputError, UsageError

RUN_FORMAT_VERSION = 1
_SOFTWARE = ("gms-lmm", "torch", "diffusers", "zarr")


@dataclass(frozen=True)
class Run:
    """An existing run directory.

    description  the content of run.json
    """

    path: Path
    description: dict[str, Any]

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        """The tokenizer whose latents the model maps; None for weights imported without one."""
        tokenizer: dict[str, Any] | None = self.description["tokenizer"]
        return tokenizer

    @property
    def imported(self) -> bool:
        """Whether its weights came from elsewhere: no store, no settings, no log."""
        return self.description["store"] is None

    @property
    def finished(self) -> bool:
        return (self.path / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """What `train --json` printed; raises ArtefactError when the run is not finished."""
        if not self.finished:
            url = self.description["store"]["url"]
            fix = f"gms-lmm train --latents {url} --out {self.path} … --resume"
            raise ArtefactError(f"{self.path} is not finished", fix)
        content: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return content

    def model(self, device: str | torch.device = "cpu") -> LatentMappingModel:
        """The selected model, in evaluation mode."""
        weights, _ = read_checkpoint(self.path / "best.safetensors")
        sizes = self.description["model"]
        model = LatentMappingModel(sizes["latent_channels"], sizes["width"])
        load_weights(model, weights)
        return model.to(device).eval()


def open_run(path: Path) -> Run:
    """The run at that path; raises ArtefactError when there is none, or one of another format."""
    file = path / "run.json"
    if not file.exists():
        raise ArtefactError(f"no run at {path}", "gms-lmm train --latents STORE --out RUN")
    description = json.loads(file.read_text())
    found = description.get("format_version")
    if found != RUN_FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has run format {found}, this version reads format {RUN_FORMAT_VERSION}",
            "train it again",
        )
    return Run(path, description)


def create_run(path: Path, description: dict[str, Any]) -> Run:
    """A new run directory with its run.json; raises UsageError when something else is there."""
    if path.exists() and any(path.iterdir()):
        raise UsageError(f"{path} exists and is not a run", "--out a path that does not exist yet")
    path.mkdir(parents=True, exist_ok=True)
    software = {name: version(name) for name in _SOFTWARE}
    content = {"format_version": RUN_FORMAT_VERSION, **description, "software": software}
    write_json(path / "run.json", content)
    return Run(path, content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    _replace(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)  # noqa: PTH105, Path.replace would hide which of the two is kept


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once, by its first name; the authors register two of them twice."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy `weights` into the model; raises ArtefactError when names or shapes differ."""
    own = weights_of(model)
    wrong = own.keys() ^ weights.keys() or {
        name for name in own if own[name].shape != weights[name].shape
    }
    if wrong:
        raise ArtefactError(
            f"the weights do not fit the model: {len(wrong)} differ, first {sorted(wrong)[0]}",
            "use the run.json that was written with these weights",
        )
    for name, parameter in own.items():
        parameter.copy_(weights[name])


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
    _replace(path, content)


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


def import_checkpoint(source: Path, out: Path) -> Run:
    """The GMS authors' published LMM weights as a run, ready for `evaluate`.

    source  a file holding {'model': state_dict}, read without executing anything in it
    raises  InputError when the file is not such a checkpoint
    """
    fix = "give a .pth file as the GMS authors publish it: {'model': state_dict}"
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)["model"]
        first = state["input_blocks.weight"]
        model = LatentMappingModel(latent_channels=first.shape[1], width=first.shape[0])
        model.load_state_dict(state)
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist", fix) from error
    except Exception as error:  # what torch.load raises on foreign bytes is not documented
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{source} is no checkpoint of an LMM: {reason}", fix) from error
    sizes = {"latent_channels": model.latent_channels, "width": model.width}
    description = {"model": sizes, "settings": None, "store": None, "tokenizer": None}
    run = create_run(out, {**description, "imported_from": source.name})
    write_checkpoint(out / "best.safetensors", weights_of(model), {"epoch": None})
    return run
