"""gms-lmm copy: a store in, the same cells at another place out, compressed if asked for."""

import click

from cli.options import emit, json_option, progress_bar


@click.command("copy")
@click.argument("store")
@click.argument("target")
@click.option(
    "--codec",
    type=click.Choice(["none", "lz4"]),
    default="none",
    show_default=True,
    help="How latents are compressed; lz4 takes less room and is read more slowly.",
)
@json_option
def command(store: str, target: str, codec: str, as_json: bool) -> None:
    """Copy a finished store, every cell compared with its checksum on the way and read back after.

    Either may be at any URL. Nothing is encoded; run again, a copy that was cut short goes on.
    Training and every other command read a compressed store as any other.

    \b
    Example:
      gms-lmm copy busi.zarr s3://bucket/busi.zarr --codec lz4
    """
    from pipeline.store import open_store
    from pipeline.store.copy import copy_store

    source = open_store(store)
    with progress_bar("copy", "shards") as progress:
        copy = copy_store(source, target, codec, progress)
    before, after = sum(source.files.values()), sum(copy.files.values())
    result = {"store": target, "codec": codec, "bytes_before": before, "bytes_after": after}
    emit(
        result,
        as_json,
        lambda: click.echo(f"{target}: {after / 1e6:.2f} MB, {store}: {before / 1e6:.2f} MB"),
    )
