"""gms-lmm verify: a store in, everything that is wrong with it out."""

from typing import Any

import click

from cli.options import device_option, emit, json_option, progress_bar, some_of


@click.command("verify")
@click.argument("store")
@click.option(
    "--reencode",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Cells to encode again and compare; needs tokenizer and images.",
)
@device_option
@json_option
def command(store: str, reencode: int, device: str, as_json: bool) -> None:
    """Check every byte of a latent store, and name what is wrong.

    Finds flipped bits, truncated, missing, swapped and foreign files, and a receipt of another
    store. gms-lmm encode … --repair encodes again exactly what is named here.

    \b
    Example:
      gms-lmm verify busi.zarr --reencode 20
    """
    from pipeline.store import open_store
    from pipeline.store.verify import verify

    opened = open_store(store)
    with progress_bar("verify", "shards") as progress:
        checked, faults = verify(opened, progress)
    again = 0
    if reencode and not faults:
        from pipeline.device import choose_device
        from pipeline.encode.reencode import reencode as encode_again
        from pipeline.tokenizer import load_tokenizer_of

        tokenizer = load_tokenizer_of(opened.tokenizer, choose_device(device))
        with progress_bar("encode again", "cells") as progress:
            again, faults = encode_again(opened, tokenizer, reencode, progress=progress)
    described = [fault.describe(opened) for fault in faults]
    result = {
        "store": store,
        "ok": not faults,
        "checked": checked,
        "reencoded": again,
        "faults": described,
    }
    emit(result, as_json, lambda: _show(result))
    if faults:
        from pipeline.errors import CheckError

        unfinished = all(fault.kind == "unfinished" for fault in faults)
        fix = "" if unfinished else " with --repair"
        raise CheckError(
            f"{store} has {len(faults)} faults", f"run its gms-lmm encode command again{fix}"
        )


def _show(result: dict[str, Any]) -> None:
    for fault in result["faults"]:
        ids = fault["sample_ids"]
        click.echo(f"{fault['kind']}: {fault['what']}" + (f" ({some_of(ids)})" if ids else ""))
    state = "every byte is right" if result["ok"] else f"{len(result['faults'])} faults"
    again = f", {result['reencoded']} encoded again" if result["reencoded"] else ""
    click.echo(f"{result['store']}: {result['checked']} cells checked{again}: {state}")
