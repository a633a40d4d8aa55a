"""gms-lmm report: runs in, one page out."""

from pathlib import Path
from typing import Any

import click

from cli.options import device_option, emit, json_option


@click.command("report")
@click.argument(
    "run_paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="report.html",
    show_default=True,
    help="The page, HTML.",
)
@click.option("--split", default="test", show_default=True, help="Split that was scored.")
@device_option
@json_option
def command(
    run_paths: tuple[Path, ...], output: Path, split: str, device: str, as_json: bool
) -> None:
    """Make one self-contained page of scores, curves and pictures.

    \b
    Example:
      gms-lmm report runs/busi-lm-s0 -o report.html
    """
    from lmm.checkpoint import open_run
    from lmm.report import build_report
    from pipeline.device import choose_device

    runs = [open_run(path) for path in run_paths]
    page, numbers = build_report(runs, split, choose_device(device))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(output)
    emit({"page": str(output), "runs": numbers}, as_json, lambda: _show(output, numbers))


def _show(output: Path, numbers: list[dict[str, Any]]) -> None:
    for one in numbers:
        otsu = "" if one["otsu_dsc"] is None else f" (Otsu: {100 * one['otsu_dsc']:.2f} %)"
        click.echo(f"{one['run']}: {one['split']} DSC {100 * one['dsc']:.2f} %{otsu}")
    click.echo(f"page: {output.resolve()}")
