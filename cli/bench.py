"""gms-lmm bench: how fast this machine encodes, reads, trains, predicts, as ratios in one run."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.distill import teach
from cli.options import (
    device_option,
    emit,
    images_at_a_time_option,
    json_option,
    latents_option,
    predict_precision_option,
    progress_bar,
    run_option,
    setting_options,
    size_option,
    table,
)


@click.group("bench")
def command() -> None:
    """Measure speed as ratios to the bare compute, in one run.

    \b
    Example:
      gms-lmm bench encode manifest.parquet --tokenizer taesd
    """


@command.command("encode")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("--tokenizer", required=True, help="As for gms-lmm encode.")
@click.option(
    "--samples", type=click.IntRange(1), default=16, show_default=True, help="Samples a round."
)
@click.option(
    "--views", type=click.IntRange(1), default=4, show_default=True, help="Views of each sample."
)
@size_option
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic of the tokenizer.",
)
@device_option
@json_option
def bench_encode_command(
    manifest: Path, tokenizer: str, device: str, as_json: bool, **settings: Any
) -> None:
    """Compare the whole of encode with the bare tokenizer on ready tensors.

    \b
    Example:
      gms-lmm bench encode manifest.parquet --tokenizer taesd --samples 16
    """
    from lmm.bench.encode import bench_encode
    from pipeline.device import choose_device
    from pipeline.manifest import read_manifest
    from pipeline.tokenizer import load_tokenizer

    samples = read_manifest(manifest)
    result = bench_encode(samples, load_tokenizer(tokenizer, choose_device(device)), **settings)
    emit(result, as_json, lambda: table("bench encode, cells per second", result))


@command.command("train")
@latents_option
@setting_options("loss", "seg_decoder")
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Steps a round; 64 hold one round of a student's lessons.",
)
@setting_options("batch_size", "precision", "residency", "memory_gib", "compile")
@device_option
@json_option
def bench_train_command(
    latents: str, steps: int, precision: str, device: str, as_json: bool, **settings: Any
) -> None:
    """Compare the training loop with its bare compute and with training without a store.

    A student is taught first where --loss needs one and the store has none.

    \b
    Example:
      gms-lmm bench train --latents busi.zarr --loss compound
    """
    from lmm.bench.train import bench_train
    from lmm.settings import TrainSettings
    from lmm.train import require_fit
    from pipeline.device import choose_device, choose_precision, require_compiler
    from pipeline.store import open_store

    store, chosen = open_store(latents), choose_device(device)
    wanted = TrainSettings(precision=choose_precision(precision, chosen), **settings)
    require_fit(store, wanted)
    if wanted.compile:
        require_compiler(chosen)
    if wanted.has_student:
        teach(store, chosen, wanted.precision)
    result = bench_train(store, wanted, chosen, steps=steps)
    emit(result, as_json, lambda: table("bench train, steps per second", result))


@command.command("predict")
@run_option
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@images_at_a_time_option
@predict_precision_option
@device_option
@json_option
def bench_predict_command(
    run_path: Path,
    images: tuple[str, ...],
    batch_size: int | None,
    precision: str,
    device: str,
    as_json: bool,
) -> None:
    """Compare the whole of predict with bare tokenizer, model and decoder on ready pixels.

    \b
    Example:
      gms-lmm bench predict --run runs/busi-lm scans/
    """
    from lmm.bench.predict import bench_predict
    from lmm.predict import load
    from pipeline.images.files import find_images

    found = find_images(images)
    model = load(run_path, device=device, precision=precision)
    result = bench_predict(model, found, batch_size=batch_size)
    emit(result, as_json, lambda: table("bench predict, images per second", result))


@command.command("read")
@latents_option
@json_option
def bench_read_command(latents: str, as_json: bool) -> None:
    """Compare reading the train split into memory with numpy's own files of the same cells.

    \b
    Example:
      gms-lmm bench read --latents busi.zarr
    """
    from lmm.bench.read import bench_read
    from pipeline.store import open_store

    result = bench_read(open_store(latents))
    emit(result, as_json, lambda: table("bench read, cells per second", result))


@command.command("storage")
@latents_option
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Samples to write anew, at most.",
)
@device_option
@json_option
def bench_storage_command(latents: str, samples: int, device: str, as_json: bool) -> None:
    """Write cells of a store anew in other layouts, codecs and precisions, and compare them.

    \b
    Example:
      gms-lmm bench storage --latents busi.zarr
    """
    from lmm.bench.storage import bench_storage
    from pipeline.device import choose_device
    from pipeline.store import open_store

    store = open_store(latents)
    with progress_bar("bench storage", "rounds") as progress:
        rows = bench_storage(store, choose_device(device), samples=samples, progress=progress)
    emit({"variants": rows}, as_json, lambda: _show_variants(rows))


def _show_variants(rows: list[dict[str, Any]]) -> None:
    grid = Table(title="bench storage, one view", title_justify="left")
    grid.add_column("variant", no_wrap=True)
    for heading in ("bytes/cell", "cells/s in order", "at random", "DSC %"):
        grid.add_column(heading, justify="right")
    for row in rows:
        rates = [f"{row[key]:.0f}" for key in ("bytes_per_cell", "cells_per_s", "random_per_s")]
        dsc = "" if row["dsc"] is None else f"{100 * row['dsc']:.2f}"
        grid.add_row(row["variant"], *rates, dsc)
    Console(highlight=False).print(grid)
