"""A grid of settings in; runs, and the answer which setting is better and by how much, out."""

from lmm.study.answer import compare_runs, write_answer
from lmm.study.grid import Grid, read_grid
from lmm.study.page import build_page
from lmm.study.plan import PLAN_FILE, Plan, make_plan, read_plan
from lmm.study.schedule import Outcome, Resources, Standing, run_study
from lmm.study.tables import format_table

__all__ = [
    "PLAN_FILE",
    "Grid",
    "Outcome",
    "Plan",
    "Resources",
    "Standing",
    "build_page",
    "compare_runs",
    "format_table",
    "make_plan",
    "read_grid",
    "read_plan",
    "run_study",
    "write_answer",
]
