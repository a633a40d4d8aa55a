"""gms-lmm report: runs in, one page or one table out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import emit, json_option

if TYPE_CHECKING:
    from lmm.run import Run


@click.command("report")
@click.argument(
    "run_paths", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The page, or with --table the table.  [default: report.html; with --table stdout]",
)
@click.option("--split", default="test", show_default=True, help="Split that was scored.")
@click.option(
    "--table",
    "kind",
    type=click.Choice(["csv", "markdown", "latex"]),
    help="A table in the paper's form instead of a page; runs that differ by seed are one row.",
)
@json_option
def command(
    run_paths: tuple[Path, ...], output: Path | None, split: str, kind: str | None, as_json: bool
) -> None:
    """Make one self-contained page of scores, curves and pictures; or a table for a paper.

    \b
    Example:
      gms-lmm report runs/busi-lm-s0 -o report.html
      gms-lmm report runs/busi-* --table latex
    """
    from lmm.run import open_run
    from lmm.splits import FOLD
    from pipeline.errors import UsageError

    if split == FOLD and not kind:
        raise UsageError(
            "a page shows the images of one split, and each run of a fold was scored on others",
            "--table markdown, csv or latex puts the runs of all folds in one row",
        )
    runs = [open_run(path) for path in run_paths]
    if kind:
        _table(runs, split, kind, output, as_json)
    else:
        _page(runs, split, output or Path("report.html"), as_json)


def _table(runs: "list[Run]", split: str, kind: str, output: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from lmm.report.tables import build_rows, format_table
    from pipeline.files import replace_file

    rows = build_rows(runs, split)
    text = format_table(rows, kind)
    if output:
        replace_file(output, text.encode())
    result = {"table": text, "rows": [asdict(row) for row in rows]}
    result |= {"file": str(output)} if output else {}
    shown = f"table: {output}\n" if output else text
    emit(result, as_json, lambda: click.echo(shown, nl=False))


def _page(runs: "list[Run]", split: str, output: Path, as_json: bool) -> None:
    from lmm.report import build_report
    from pipeline.files import replace_file

    page, numbers = build_report(runs, split)
    replace_file(output, page.encode())
    emit({"page": str(output), "runs": numbers}, as_json, lambda: _show(output, numbers))


def _show(output: Path, numbers: list[dict[str, Any]]) -> None:
    for one in numbers:
        bounds = {"ceiling": one["ceiling_dsc"], "Otsu": one["otsu_dsc"]}
        known = [f"{name} {100 * dsc:.2f} %" for name, dsc in bounds.items() if dsc is not None]
        beside = f" ({', '.join(known)})" if known else ""
        click.echo(f"{one['run']}: {one['split']} DSC {100 * one['dsc']:.2f} %{beside}")
    click.echo(f"page: {output.resolve()}")
