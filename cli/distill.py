"""gms-lmm distill: a latent store in, a student of its tokenizer's decoder beside it out."""

from typing import TYPE_CHECKING

import click

from cli.options import (
    device_option,
    emit,
    json_option,
    latents_option,
    progress_bar,
    say,
    setting_options,
    table,
)

if TYPE_CHECKING:
    import torch

    from lmm.student.file import KeptStudent
    from pipeline.store import LatentStore


@click.command("distill")
@latents_option
@setting_options("precision")
@device_option
@json_option
def command(latents: str, precision: str, device: str, as_json: bool) -> None:
    """Teach a small network to decode mask latents as the store's frozen decoder does.

    train --seg-decoder student does this by itself where it was not done before.

    \b
    Example:
      gms-lmm distill --latents busi.zarr
    """
    from lmm.decoder import MaskDecoder
    from lmm.student.file import STUDENT_FILE, measure
    from pipeline.device import choose_device, choose_precision
    from pipeline.store import open_store
    from pipeline.tokenizer import load_tokenizer_of

    store, chosen = open_store(latents), choose_device(device)
    in_precision = choose_precision(precision, chosen)
    kept, reused = teach(store, chosen, in_precision)
    teacher = MaskDecoder(load_tokenizer_of(store.tokenizer, chosen), in_precision)
    result = {
        "student": f"{store.url}.{STUDENT_FILE}",
        "reused": reused,
        "precision": kept.precision,
        **measure(store, teacher, kept.network),
    }
    if reused:
        say(f"{result['student']} was made of this store before")
    emit(result, as_json, lambda: table("student of the frozen decoder", result))


def teach(
    store: "LatentStore", device: "torch.device", precision: str, fold: int | None = None
) -> "tuple[KeptStudent, bool]":
    """The store's student, and whether it was there already; a bar while one is taught.

    fold  what it is not to see
    """
    from lmm.decoder import MaskDecoder
    from lmm.student.file import kept_student, load_student, student_file
    from pipeline.tokenizer import load_tokenizer_of

    kept = kept_student(store, device, fold)
    if kept:
        if kept.precision != precision:
            name = f"{store.url}.{student_file(fold)}"
            say(f"{name} was taught in {kept.precision}, not {precision}: used as it is")
        return kept, True
    teacher = MaskDecoder(load_tokenizer_of(store.tokenizer, device), precision)
    with progress_bar("distill", "latents and lessons") as progress:
        return load_student(store, teacher, fold, progress), False
