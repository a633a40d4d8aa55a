"""gms-lmm encode: manifest in, latent store out."""

from pathlib import Path

import click

from cli.options import (
    BatchSize,
    device_option,
    emit,
    json_option,
    progress_bar,
    say,
    size_option,
    view_seed_option,
)


@click.command("encode")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("store")
@click.option(
    "--tokenizer",
    required=True,
    help="tiny-vae, sd-vae, taesd, taesd3, a diffusers directory, a single file or a hub id.",
)
@click.option(
    "--views",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Views of each sample: the clean one and K−1 augmented ones.",
)
@size_option
@view_seed_option
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Arithmetic of the tokenizer; latents are stored as float16 in any case.",
)
@click.option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    show_default=True,
    help="Cells at a time through the tokenizer; halved when memory runs out.",
)
@device_option
@json_option
def command(
    manifest: Path,
    store: str,
    tokenizer: str,
    views: int,
    size: int,
    seed: int,
    precision: str,
    batch_size: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Encode every view of every sample into a latent store; run it again to resume.

    \b
    Example:
      gms-lmm encode manifest.parquet busi.zarr --tokenizer taesd --views 8
    """
    # What can be refused at once is refused before anything heavy is imported.
    from pipeline.weights import locate

    locate(tokenizer)

    from dataclasses import asdict

    from pipeline.manifest import read_manifest

    samples = read_manifest(manifest)

    from pipeline.device import choose_device
    from pipeline.encode import encode
    from pipeline.tokenizer import load_tokenizer

    with progress_bar("encode", "cells") as progress:
        report = encode(
            samples,
            store,
            load_tokenizer(tokenizer, choose_device(device)),
            views=views,
            size=size,
            seed=seed,
            precision=precision,
            batch_size=batch_size,
            progress=progress,
        )
    if not report.encoded:
        say(f"{store} is already complete: {report.present} cells, nothing to encode")

    def show() -> None:
        click.echo(
            f"{store}: {report.encoded} cells encoded, {report.reused} reused, "
            f"{report.present} present, {report.seconds:.1f} s, "
            f"{report.samples_per_s:.2f} cells/s"
        )

    emit({"store": store, **asdict(report)}, as_json, show)
