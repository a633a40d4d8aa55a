"""The student kept beside a store: used if it was made of what the store holds, else made anew."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lmm.decoder import MaskDecoder
from lmm.latents import load_latents
from lmm.run import Run
from lmm.run.checkpoint import load_weights, read_checkpoint, weights_of
from lmm.splits import digests_of_folds
from lmm.student.distillation import distil, synthetic_latents
from lmm.student.network import MaskStudent, StudentDecoder
from pipeline.errors import ArtefactError
from pipeline.store import LatentStore
from pipeline.store.lock import exclusive
from pipeline.telling import Progress

STUDENT_FILE = "student.safetensors"
RECIPE = 2  # of distil; another number makes every student anew
FIRST_PAIRS = 1024  # decoded latents that a student is taught on before training
FIRST_LESSONS = 1600
MEASURED = 64  # latents of a student's agreement


@dataclass(frozen=True)
class KeptStudent:
    """A student as it lies beside a store.

    precision  arithmetic of student and frozen decoder while it was taught: fp32 or bf16
    digest     sha256, hex, of its file
    """

    network: MaskStudent
    precision: str
    digest: str

    @property
    def origin(self) -> dict[str, str]:
        """What a run that begins with it says of it: digest and precision."""
        return {"digest": self.digest, "precision": self.precision}


def student_file(fold: int | None = None) -> str:
    """What follows the store's name in a student's: one of each fold, which never saw it."""
    return STUDENT_FILE if fold is None else f"student-without-fold{fold}.safetensors"


def kept_student(
    store: LatentStore, device: torch.device, fold: int | None = None
) -> KeptStudent | None:
    """The student in `STORE.student.safetensors`, or None.

    One of another tokenizer, of other latents or of another recipe is none, nor is one that does
    not say at which precision it was taught. One taught at another precision than a run's is used:
    it goes on learning at the run's.

    fold    what the run leaves out, and its student too; None for nothing
    raises  ArtefactError when the store is not finished or the file is damaged
    """
    store.require_complete()
    content = store.folder.read_beside(student_file(fold))
    if content is None:
        return None
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ArtefactError(
            f"{store.url}.{student_file(fold)} is damaged: {error}", "delete it: it is made again"
        ) from error
    precision = _metadata(content).get("precision")
    if precision is None or not torch.equal(tensors.pop("made_from"), _made_from(store, fold)):
        return None
    network = _with_weights(tensors, store.tokenizer, device)
    return KeptStudent(network, precision, hashlib.sha256(content).hexdigest())


def _new_student(
    store: LatentStore, teacher: MaskDecoder, fold: int | None, progress: Progress | None
) -> KeptStudent:
    """A student taught now, and kept beside the store.

    fold      what it is not to see
    progress  called with (done, in all) of the teaching
    """
    latents = _true_latents(store, teacher, fold)
    network = distil(teacher, latents, FIRST_PAIRS, FIRST_LESSONS, progress).decoder.student
    tensors = {name: tensor.contiguous() for name, tensor in weights_of(network).items()}
    content = safetensors.torch.save(
        {**tensors, "made_from": _made_from(store, fold)}, {"precision": teacher.precision}
    )
    store.folder.write_beside(student_file(fold), content)
    return KeptStudent(network, teacher.precision, hashlib.sha256(content).hexdigest())


def load_student(
    store: LatentStore,
    teacher: MaskDecoder,
    fold: int | None = None,
    progress: Progress | None = None,
) -> KeptStudent:
    """The student kept beside a store, or one taught now, for which others wait meanwhile.

    raises  as `kept_student` does
    """
    device = teacher.tokenizer.device
    if kept := kept_student(store, device, fold):
        return kept
    with exclusive(store.url, f".{student_file(fold)}.lock", "distill", wait_for="distill"):
        return kept_student(store, device, fold) or _new_student(store, teacher, fold, progress)


def measure(
    store: LatentStore, teacher: MaskDecoder, student: MaskStudent, fold: int | None = None
) -> dict[str, Any]:
    """How well a student decodes latents that it was not taught on, made as those it was.

    fold     what it is not to see
    returns  parameters; agreement, the mean DSC between its masks and the frozen decoder's
    """
    generator = torch.Generator().manual_seed(1)
    unseen = synthetic_latents(_true_latents(store, teacher, fold), MEASURED, generator)
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
    """A student of a tokenizer as stores and runs describe it, as wide as its weights are."""
    width = len(tensors["stem.weight"])
    student = MaskStudent(tokenizer["latent_channels"], tokenizer["downsampling"], width)
    load_weights(student, tensors)
    return student.to(device)


def _true_latents(store: LatentStore, teacher: MaskDecoder, fold: int | None = None) -> Tensor:
    """Z_M of every training cell outside a fold: (n, C, h, w) float32, scaled."""
    device = teacher.tokenizer.device
    return load_latents(store, "train", masks=False, fold=fold, device=device).z_mask


def _metadata(content: bytes) -> dict[str, str]:
    """Metadata of a safetensors file: the header's length in eight bytes, then its JSON."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return metadata


def _made_from(store: LatentStore, fold: int | None) -> Tensor:
    """Digest of all that decides a student: recipe, tokenizer, the store's content, the fold."""
    what = [RECIPE, store.tokenizer["digest"], store.receipt()]
    if fold is not None:
        what.append(digests_of_folds(store.samples)[str(fold)])
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()
    return torch.frombuffer(bytearray(digest), dtype=torch.uint8)
