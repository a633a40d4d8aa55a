"""gms-lmm baseline: manifest in, run directory of a network in pixels out."""

from pathlib import Path
from typing import Any

import click

from cli.options import device_option, emit, json_option, run_folder_options, setting_options, table
from cli.training import carry_out, make_cublas_deterministic, show_plan
from lmm.baseline.settings import FRESH, BaselineSettings
from lmm.settings import known_settings
from pipeline.telling import Progress


class Views(click.ParamType[int | str]):
    """A number of views, or `fresh`."""

    name = f"{FRESH}|K"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == FRESH:
            return FRESH
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither {FRESH!r} nor a positive number", param, ctx)
        return int(value)


@click.command("baseline")
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory.  [default: runs/MANIFEST-MODEL[-foldFOLD]-sSEED]",
)
@setting_options("model", "size", of=BaselineSettings)
@click.option(
    "--views",
    type=Views(),
    default=BaselineSettings.views,
    show_default=True,
    help=known_settings(BaselineSettings)["views"].help,
)
@setting_options(
    "view_seed",
    "epochs",
    "seconds",
    "batch_size",
    "lr",
    "seed",
    "precision",
    "val_every",
    "select_on",
    "fold",
    "deterministic",
    of=BaselineSettings,
)
@run_folder_options("manifest")
@device_option
@json_option
def command(
    manifest: Path,
    out: Path | None,
    precision: str,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a MONAI network on pixels, on the split, views and metrics of any other run.

    \b
    Example:
      gms-lmm baseline manifest.parquet --model unet --epochs 60
    """
    from lmm.baseline.budget import settle_epochs
    from lmm.baseline.pixels import open_manifest
    from lmm.baseline.train import describe, train_baseline
    from pipeline.device import choose_device, choose_precision

    chosen = choose_device(device)
    if settings["deterministic"]:
        make_cublas_deterministic()
    wanted = BaselineSettings(precision=choose_precision(precision, chosen), **settings)
    images = open_manifest(manifest, wanted.size)
    fold = "" if wanted.fold is None else f"-fold{wanted.fold}"
    out = out or Path("runs") / f"{images.name}-{wanted.model}{fold}-s{wanted.seed}"
    wanted = settle_epochs(images, out, wanted, chosen)
    plan = describe(images, wanted)
    if dry_run:
        show_plan(out, plan, as_json)
        return

    def work(progress: Progress) -> dict[str, Any]:
        return train_baseline(
            images,
            out,
            wanted,
            device=chosen,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    summary = carry_out("baseline", out, plan, work, quiet=as_json)
    emit(summary, as_json, lambda: table("trained", summary))
