"""gms-lmm report: runs or a study in, one page or one table out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import emit, json_option

if TYPE_CHECKING:
    from lmm.run import Run


@click.command("report")
@click.argument(
    "run_paths", metavar="RUN...|STUDY", nargs=-1, required=True, type=click.Path(path_type=Path)
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

    Of runs, or of a study's folder: settings side by side, with their difference to the baseline.

    \b
    Example:
      gms-lmm report runs/busi-lm-s0 -o report.html
      gms-lmm report runs/busi-* --table latex
      gms-lmm report studies/losses --table markdown
    """
    from lmm.run import open_run
    from lmm.splits import FOLD
    from lmm.study.plan import PLAN_FILE
    from pipeline.errors import UsageError

    if any((path / PLAN_FILE).exists() for path in run_paths):
        _study(run_paths, kind, output, as_json)
        return
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


def _study(paths: tuple[Path, ...], kind: str | None, output: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from lmm.study import build_page, compare_runs, format_table, read_plan
    from pipeline.errors import UsageError
    from pipeline.files import replace_file

    if len(paths) > 1:
        raise UsageError("a study has a page of its own", "give one study's folder, or runs alone")
    plan = read_plan(paths[0])
    results, compared = compare_runs(plan)
    result: dict[str, Any] = {"settings": [asdict(one) for one in compared]}
    text = format_table(plan, compared, kind or "markdown")
    if kind is None or output:
        output = output or Path("report.html")
        replace_file(output, (text if kind else build_page(plan, results, compared)).encode())
    if kind:
        result |= {"table": text} | ({"file": str(output)} if output else {})
        shown = f"table: {output}\n" if output else text
    else:
        result |= {"page": str(output)}
        shown = f"{text}page: {Path(str(output)).resolve()}\n"
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
