"""gms-lmm evaluate: run and store in, scores out."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.options import device_option, emit, json_option, latents_option, run_option


@click.command("evaluate")
@run_option
@latents_option
@click.option(
    "--split", default="test", show_default=True, help="Split to score: train, val, test."
)
@click.option(
    "--masks", type=click.Path(path_type=Path), help="Folder to write the predicted masks to, PNG."
)
@device_option
@json_option
def command(
    run_path: Path, latents: str, split: str, masks: Path | None, device: str, as_json: bool
) -> None:
    """Score a run on one split: DSC, IoU and HD95 of each image and of all.

    \b
    Example:
      gms-lmm evaluate --run runs/busi-lm-s0 --latents busi.zarr --split test
    """
    from lmm.checkpoint import open_run
    from lmm.evaluate import evaluate, write_evaluation, write_masks
    from pipeline.device import choose_device
    from pipeline.store import open_store

    run, store = open_run(run_path), open_store(latents)
    evaluation = evaluate(run, store, split, choose_device(device))
    path = write_evaluation(evaluation, run.path / "evaluate", store.name)
    if masks:
        write_masks(evaluation, masks)
    summary = {**evaluation.summary, "run": str(run.path), "store": latents, "per_image": str(path)}
    emit(summary, as_json, lambda: _show(summary))


def _show(summary: dict[str, Any]) -> None:
    grid = Table(title=f"{summary['split']}: {summary['n']} images", title_justify="left")
    for heading in ("", "mean", "sd", "95 % interval"):
        grid.add_column(heading, justify="left" if not heading else "right")
    for key, label, factor in (
        ("dsc", "DSC %", 100),
        ("iou", "IoU %", 100),
        ("hd95", "HD95 px", 1),
    ):
        low, high = summary[f"{key}_ci95"]
        grid.add_row(
            label,
            f"{factor * summary[key]:.2f}",
            f"{factor * summary[f'{key}_sd']:.2f}",
            f"{factor * low:.2f} – {factor * high:.2f}",
        )
    Console(highlight=False).print(grid)
    click.echo(f"missed {summary['missed']}, false alarms {summary['false_alarms']}")
    click.echo(f"per image: {summary['per_image']}")
