"""gms-lmm encode: manifest in, latent store out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from pipeline.encode.work import Work
    from pipeline.store.lock import Partition


class PartitionType(click.ParamType["Partition"]):
    """`i/n`, i from 1 to n."""

    name = "i/n"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> "Partition":
        from pipeline.store.lock import Partition

        number, _, count = str(value).partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            self.fail(f"{value!r} is not a share such as 2/4", param, ctx)
        return Partition(int(number), int(count))


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
@click.option(
    "--eval-views",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Of these, how many samples of split test get: only evaluate --average views reads them.",
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
@click.option(
    "--partition",
    type=PartitionType(),
    help="Encode only the i-th of n shares of the blocks; run all n, at once or one by one.",
)
@click.option(
    "--scheduler",
    metavar="ADDR",
    help="Encode on a Dask cluster: tcp://HOST:PORT, or local:N for N processes on this machine; "
    "--device and --batch-size are then those of each worker.",
)
@click.option(
    "--repair", is_flag=True, help="Verify the store first; encode again what is wrong with it."
)
@click.option(
    "--dry-run", is_flag=True, help="Print how many cells would be encoded, and why; write nothing."
)
@device_option
@json_option
def command(
    manifest: Path,
    store: str,
    tokenizer: str,
    views: int,
    eval_views: int,
    size: int,
    seed: int,
    precision: str,
    batch_size: int | None,
    partition: "Partition | None",
    scheduler: str | None,
    repair: bool,
    dry_run: bool,
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
    if partition and (repair or scheduler):
        raise click.UsageError("--repair and --scheduler are for a whole store, not --partition")

    from dataclasses import asdict

    from pipeline.manifest import read_manifest

    samples = read_manifest(manifest)

    from pipeline.device import choose_device
    from pipeline.encode import encode
    from pipeline.encode.work import find_work, store_attributes
    from pipeline.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer, choose_device("cpu" if scheduler else device))
    if dry_run:
        settings = (views, size, seed, precision, eval_views)
        attributes = store_attributes(samples, loaded, *settings)
        _show_work(store, find_work(store, samples, attributes), as_json)
        return

    def announce(work: "Work") -> None:
        if work.todo.any() and not as_json:
            cells, latents = work.size_when_done()
            say(f"{store}: {cells} cells when done, {latents / 1e6:.0f} MB of latents")

    with progress_bar("encode", "cells") as progress:
        report = encode(
            samples,
            store,
            loaded,
            views=views,
            size=size,
            seed=seed,
            precision=precision,
            eval_views=eval_views,
            batch_size=batch_size,
            partition=partition,
            scheduler=scheduler,
            worker_device=device,
            repair=repair,
            announce=announce,
            progress=progress,
        )
    if not report.complete:
        say(f"{store} is not finished: other partitions have cells left to encode")
    elif not report.encoded:
        say(f"{store} is already complete: {report.present} cells, nothing to encode")

    def show() -> None:
        click.echo(
            f"{store}: {report.encoded} cells encoded, {report.reused} reused, "
            f"{report.present} present, {report.seconds:.1f} s, "
            f"{report.samples_per_s:.2f} cells/s"
        )

    emit({"store": store, **asdict(report)}, as_json, show)


def _show_work(store: str, work: "Work", as_json: bool) -> None:
    reasons, (_, latents) = work.counts(), work.size_when_done()
    total = sum(reasons.values())

    def show() -> None:
        for reason, count in reasons.items():
            click.echo(f"{count:8} cells: {reason}")
        click.echo(f"{total:8} cells to encode into {store}, {latents / 1e6:.0f} MB when done")

    described = {"to_encode": total, "reasons": reasons, "bytes_when_done": latents}
    emit({"store": store, **described}, as_json, show)
