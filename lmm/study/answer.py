"""The answer of a study, written into its folder: every score, tables of what they say, a page."""

import polars as pl

from lmm.study.compare import Compared, compare
from lmm.study.page import build_page
from lmm.study.plan import Plan
from lmm.study.results import collect
from lmm.study.tables import SUFFIXES, format_table
from pipeline.files import replace_file, replacing


def compare_runs(plan: Plan) -> tuple[pl.DataFrame, list[Compared]]:
    """The scores of a study's runs, as `collect` gives them, and what they compare to.

    raises  ArtefactError when no run has been scored
    """
    results = collect(plan)
    return results, compare(plan, results)


def write_answer(plan: Plan) -> list[Compared]:
    """Write results.parquet, results.md, .tex and .csv, and report.html; returns what they compare.

    raises  ArtefactError when no run has been scored
    """
    results, compared = compare_runs(plan)
    with replacing(plan.out / "results.parquet") as partial:
        results.write_parquet(partial)
    for kind, suffix in SUFFIXES.items():
        text = format_table(plan, compared, kind)
        replace_file(plan.out / f"results.{suffix}", text.encode())
    replace_file(plan.out / "report.html", build_page(plan, results, compared).encode())
    return compared
