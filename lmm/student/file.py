"""The student kept beside a store: used if it was made of what the store holds, else made anew."""

import hashlib
import json
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lmm.checkpoint import load_weights, read_checkpoint, weights_of
from lmm.decoder import MaskDecoder
from lmm.latents import load_latents
from lmm.run import Run
from lmm.student.distillation import distil, synthetic_latents
from lmm.student.network import MaskStudent, StudentDecoder
from pipeline.errors import ArtefactError
from pipeline.store import LatentStore
from pipeline.telling import Progress

STUDENT_FILE = "student.safetensors"
RECIPE = 1  # of distil; another number makes every student anew
FIRST_PAIRS = 1024  # decoded latents that a student is taught on before training
FIRST_LESSONS = 800
MEASURED = 64  # latents of a student's agreement


def kept_student(store: LatentStore, device: torch.device) -> MaskStudent | None:
    """The student in `STORE.student.safetensors`, or None.

    One of another tokenizer, of other latents or of another recipe is none.

    raises  ArtefactError when the store is not finished or the file is damaged
    """
    store.require_complete()
    content = store.read_beside(STUDENT_FILE)
    if content is None:
        return None
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ArtefactError(
            f"{store.url}.{STUDENT_FILE} is damaged: {error}", "delete it: it is made again"
        ) from error
    if not torch.equal(tensors.pop("made_from"), _made_from(store)):
        return None
    return _with_weights(tensors, store.tokenizer, device)


def new_student(
    store: LatentStore, teacher: MaskDecoder, progress: Progress | None = None
) -> MaskStudent:
    """A student taught now, and kept beside the store.

    progress  called with (done, in all) of the teaching
    """
    latents = _true_latents(store, teacher)
    student = distil(teacher, latents, FIRST_PAIRS, FIRST_LESSONS, progress).decoder.student
    tensors = {name: tensor.contiguous() for name, tensor in weights_of(student).items()}
    content = safetensors.torch.save({**tensors, "made_from": _made_from(store)})
    store.write_beside(STUDENT_FILE, content)
    return student


def load_student(store: LatentStore, teacher: MaskDecoder) -> MaskStudent:
    """The student kept beside a store, or one taught now; raises as `kept_student` does."""
    return kept_student(store, teacher.tokenizer.device) or new_student(store, teacher)


def measure(store: LatentStore, teacher: MaskDecoder, student: MaskStudent) -> dict[str, Any]:
    """How well a student decodes latents that it was not taught on, made as those it was.

    returns  parameters; agreement, the mean DSC between its masks and the frozen decoder's
    """
    generator = torch.Generator().manual_seed(1)
    unseen = synthetic_latents(_true_latents(store, teacher), MEASURED, generator)
    return {
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "agreement": StudentDecoder(student, teacher.precision).agreement(
            unseen, teacher.masks(unseen)
        ),
    }


def student_of(run: Run, device: torch.device) -> StudentDecoder:
    """The student that a run was trained with, as it was in the chosen epoch; float32.

    raises  ArtefactError when the run was trained without one
    """
    path = run.path / STUDENT_FILE
    if not path.exists() or run.tokenizer is None:
        raise ArtefactError(f"{run.path} has no student", "train with --seg-decoder student")
    tensors, _ = read_checkpoint(path)
    return StudentDecoder(_with_weights(tensors, run.tokenizer, device), "fp32")


def _with_weights(
    tensors: dict[str, Tensor], tokenizer: dict[str, Any], device: torch.device
) -> MaskStudent:
    """A student of a tokenizer as stores and runs describe it."""
    student = MaskStudent(tokenizer["latent_channels"], tokenizer["downsampling"])
    load_weights(student, tensors)
    return student.to(device)


def _true_latents(store: LatentStore, teacher: MaskDecoder) -> Tensor:
    """Z_M of every training cell: (n, C, h, w) float32, scaled."""
    return load_latents(store, "train", masks=False, device=teacher.tokenizer.device).z_mask


def _made_from(store: LatentStore) -> Tensor:
    """Digest of all that decides a student: the recipe, the tokenizer, the store's content."""
    what = [RECIPE, store.tokenizer["digest"], store.receipt()]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)
