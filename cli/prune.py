"""gms-lmm prune: a store in, the same store without what is no longer wanted out."""

from pathlib import Path

import click

from cli.options import emit, json_option, progress_bar


@click.command("prune")
@click.argument("store")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Keep only its samples.  [default: those of the manifest encoded last]",
)
@json_option
def command(store: str, manifest: Path | None, as_json: bool) -> None:
    """Drop the cells of departed samples and of views no longer asked for; reclaim their bytes.

    Nothing is encoded again. Needs room for a copy of what is kept.

    \b
    Example:
      gms-lmm prune busi.zarr --manifest busi.parquet
    """
    from dataclasses import asdict

    from pipeline.manifest import read_manifest
    from pipeline.store.prune import prune

    kept = None if manifest is None else read_manifest(manifest)
    with progress_bar("prune", "shards") as progress:
        pruned = prune(store, kept, progress)

    def show() -> None:
        saved = pruned.bytes_before - pruned.bytes_after
        click.echo(
            f"{store}: {pruned.samples} samples and {pruned.views} views dropped, "
            f"{saved / 1e6:.2f} MB reclaimed, {pruned.bytes_after / 1e6:.2f} MB left"
        )

    emit({"store": store, **asdict(pruned)}, as_json, show)
