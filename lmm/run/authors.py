"""The GMS authors' published weights as a run."""

from pathlib import Path

import torch

from lmm.model import LatentMappingModel
from lmm.run.checkpoint import weights_of, write_checkpoint
from lmm.run.folder import Run, create_run
from pipeline.errors import InputError


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
