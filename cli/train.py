"""gms-lmm train: latent store in, run directory out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cli.distill import teach
from cli.options import (
    device_option,
    emit,
    json_option,
    latents_option,
    run_folder_options,
    say,
    setting_options,
    table,
)
from cli.training import carry_out, make_cublas_deterministic, show_plan
from lmm.settings import known_settings
from pipeline.telling import Progress

POOR_AGREEMENT = 0.9


@click.command("train")
@latents_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run directory.  [default: runs/STORE-LOSS[-foldFOLD]-sSEED]",
)
@setting_options(
    "loss",
    "seg_decoder",
    "seg_levels",
    "seg_every",
    "epochs",
    "batch_size",
    "lr",
    "width",
    "seed",
    "posterior",
    "precision",
    "val_every",
    "select_on",
    "fold",
    "views",
    "share",
    "residency",
    "memory_gib",
    "compile",
    "deterministic",
)
@click.option(
    "--refit",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Train a finished run anew, on train and val, for the epochs that val chose.",
)
@run_folder_options("store")
@click.option(
    "--tensorboard", is_flag=True, help="Also write TensorBoard events into the run directory."
)
@device_option
@json_option
def command(
    latents: str,
    out: Path | None,
    precision: str,
    refit: Path | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    tensorboard: bool,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a latent mapping model from cached latents alone.

    \b
    Example:
      gms-lmm train --latents busi.zarr --loss lm --epochs 60
      gms-lmm train --latents busi.zarr --refit runs/busi-lm-s0
    """
    from lmm.run import open_run
    from lmm.settings import TrainSettings
    from lmm.train import describe, refitted, train
    from pipeline.device import choose_device, choose_precision, require_compiler
    from pipeline.store import open_store

    store = open_store(latents)
    chosen = choose_device(device)
    wanted = TrainSettings(precision=choose_precision(precision, chosen), **settings)
    if refit:
        _refuse_settings()
        wanted, out = refitted(open_run(refit), store), out or Path(f"{refit}-refit")
    if wanted.deterministic:
        make_cublas_deterministic()

    fold = "" if wanted.fold is None else f"-fold{wanted.fold}"
    out = out or Path("runs") / f"{store.name}-{wanted.loss}{fold}-s{wanted.seed}"
    plan = describe(store, wanted)
    if dry_run:
        show_plan(out, plan, as_json)
        return

    def prepare() -> None:
        if wanted.compile:
            require_compiler(chosen)
        if wanted.has_student:
            teach(store, chosen, wanted.precision, wanted.fold)

    def work(progress: Progress) -> dict[str, Any]:
        with _events(out, tensorboard) as log:
            return train(
                store,
                out,
                wanted,
                device=chosen,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
                log=log,
            )

    summary = carry_out("train", out, plan, work, prepare=prepare, quiet=as_json)
    agreement = summary.get("student_agreement")
    if agreement is not None and agreement < POOR_AGREEMENT:
        say(
            f"warning: student and frozen decoder agree at DSC {agreement:.3f} only: the Dice loss "
            "trained against other masks than those that are scored; --seg-decoder full is exact"
        )
    emit(summary, as_json, lambda: table("trained", summary))


def _refuse_settings() -> None:
    """Raise click.UsageError for a setting on the command line, which --refit has from its run."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name in known_settings():
            raise click.UsageError(
                f"--refit has the settings of its run, and takes no {parameter.opts[0]}"
            )


@contextmanager
def _events(run: Path, wanted: bool) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """A callback that writes log lines as TensorBoard scalars, or None."""
    if not wanted:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise click.UsageError(
            "--tensorboard needs it: pip install 'gms-lmm[tensorboard]'"
        ) from error
    writer: SummaryWriter | None = None

    def log(line: Mapping[str, Any]) -> None:
        nonlocal writer
        # At the first line, because a run must be made before anything is put into its folder.
        writer = writer or SummaryWriter(str(run / "tensorboard"))
        for key, value in line.items():
            if key != "epoch":
                writer.add_scalar(key, value, line["epoch"])

    try:
        yield log
    finally:
        if writer:
            writer.close()
