"""gms-lmm evaluate: run and store in, scores out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from cli.ceiling import say_why_no_psnr, show_ceiling
from cli.options import (
    average_option,
    device_option,
    emit,
    json_option,
    progress_bar,
    runs_option,
)
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from lmm.averaging import Average
    from lmm.metrics import HD95

DEFINITIONS = {
    "monai": "MONAI: the larger of both directions' 95th percentiles",
    "pooled": "medpy: 95th percentile of both directions together",
}


@click.command("evaluate")
@runs_option
@click.option("--latents", help="Latent store: a path or any fsspec URL.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Manifest whose images are scored, in place of a store; for a run of gms-lmm baseline.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Split to score: train, val, test; or the fold left out.",
)
@click.option(
    "--native",
    is_flag=True,
    help="Score against the original masks at their own size as well.",
)
@click.option(
    "--ceiling",
    "with_ceiling",
    is_flag=True,
    help="Score what the tokenizer alone gives back as well, for the report; two more decodes an"
    " image.",
)
@click.option(
    "--student",
    "with_student",
    is_flag=True,
    help="Score the masks of the run's student as well; the frozen decoder's remain the scores.",
)
@average_option("the store's views, with nothing encoded")
@click.option(
    "--confidence",
    "sure",
    is_flag=True,
    help="Say how sure each mask is and whether the grey maps are calibrated; averages always do.",
)
@click.option(
    "--hd95",
    type=click.Choice(["monai", "pooled"]),
    default="monai",
    show_default=True,
    help="HD95, px: MONAI's, the larger of both directions; or medpy's, both pooled.",
)
@click.option(
    "--allow-seen",
    is_flag=True,
    help="Score images too that the run was trained or selected on, as --split train or val are;"
    " file, table and page say so.",
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    help="Folder to write the predicted masks to, PNG; with --native at the originals' own size.",
)
@click.option(
    "--grey",
    is_flag=True,
    help="Also write the grey maps before the threshold, to grey/ in the folder of --masks.",
)
@device_option
@json_option
def command(
    run_paths: tuple[Path, ...],
    latents: str | None,
    manifest: Path | None,
    split: str,
    native: bool,
    with_ceiling: bool,
    with_student: bool,
    average: "Average",
    sure: bool,
    hd95: "HD95",
    allow_seen: bool,
    masks: Path | None,
    grey: bool,
    device: str,
    as_json: bool,
) -> None:
    """Score a run on one split: DSC, IoU and HD95 of each image and of all.

    Of several runs, or with --average, the mean grey map is scored; the first run keeps the scores.

    \b
    Example:
      gms-lmm evaluate --run runs/busi-lm-s0 --latents busi.zarr --split test
    """
    if (latents is None) == (manifest is None):
        raise click.UsageError("--latents STORE, or of a baseline --manifest MANIFEST: one of them")

    from lmm.evaluate import Wanted, evaluate, open_images, write_evaluation, write_masks
    from lmm.run import open_run
    from pipeline.device import choose_device

    if grey and masks is None:
        raise UsageError("--grey has no folder to write to", "--masks FOLDER")
    run, *others = [open_run(path) for path in run_paths]
    images = open_images(run, latents, manifest)
    chosen = choose_device(device)
    wanted = Wanted(hd95, native, with_ceiling, with_student, average, sure, grey)
    with progress_bar("evaluate", "decodes") as progress:
        evaluation = evaluate(
            run, images, split, chosen, wanted, progress, others=others, allow_seen=allow_seen
        )
    path = write_evaluation(evaluation, run.path / "evaluate")
    if masks:
        write_masks(evaluation, masks)
    said = {"run": str(run.path), "per_image": str(path), "seconds": evaluation.seconds}
    summary = {**evaluation.summary, **said}
    if with_ceiling:
        say_why_no_psnr(summary["ceiling"])
    emit(summary, as_json, lambda: _show(summary))


def _show(summary: dict[str, Any]) -> None:
    from lmm.evaluate.members import average_in_words
    from lmm.run.lineage import seen_in_words

    title = f"{summary['split']}: {summary['n']} images"
    if "average" in summary:
        title += f", {average_in_words(summary)}"
    _scores(f"{title} at {summary['size']} px", summary)
    if "without_twins" in summary:
        _without_twins(summary)
    if "native" in summary:
        _scores(f"{title}, original masks", summary["native"])
    if "student" in summary:
        _scores(f"{title}, decoded by the student", summary["student"])
        agreement = summary["student"]["agreement"]
        if agreement is not None:
            click.echo(f"agrees with the frozen decoder at DSC {agreement:.4f}")
    if "ceiling" in summary:
        show_ceiling("the tokenizer's ceiling", summary["ceiling"])
    if "confidence" in summary:
        _confidence(summary["confidence"])
    if words := seen_in_words(summary["seen"], summary["n"]):
        click.echo(words)
    click.echo(f"HD95 by the definition of {DEFINITIONS[summary['hd95_definition']]}")
    click.echo(f"per image: {summary['per_image']}")


def _confidence(found: dict[str, Any]) -> None:
    click.echo(
        f"the {found['surest_share']:.0%} of the images that are surest: "
        f"DSC {found['dsc_of_surest']:.4f}"
    )
    alone = f", {found['ece_alone']:.4f} before averaging" if "ece_alone" in found else ""
    if found["ece"] is not None:
        click.echo(f"calibration error of the grey maps {found['ece']:.4f}{alone}")


def _without_twins(summary: dict[str, Any]) -> None:
    rest = summary["without_twins"]
    if rest is None:
        click.echo("each image has a twin among those that the run was trained on")
        return
    twins = summary["n"] - rest["n"]
    _scores(f"without {twins} twins of images trained on", rest)


def _scores(title: str, summary: dict[str, Any]) -> None:
    from lmm.metrics import METRICS

    grid = Table(title=title, title_justify="left")
    for heading in ("", "mean", "sd", "95 % interval"):
        grid.add_column(heading, justify="left" if not heading else "right")
    for one in METRICS:
        low, high = map(one.shown, summary[f"{one.key}_ci95"])
        values = (summary[one.key], summary[f"{one.key}_sd"])
        grid.add_row(one.label, *map(one.shown, values), f"{low} – {high}")
    Console(highlight=False).print(grid)
    click.echo(
        f"missed {summary['missed']} ({summary['empty']} empty), "
        f"false alarms {summary['false_alarms']}"
    )
