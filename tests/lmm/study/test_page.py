"""The page and tables of a study: what they say, and that a browser has room for it."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chromium import Chromium
from click.testing import CliRunner
from studied import fabricate, fabricated, grid_file

from cli.main import main
from lmm.study import compare_runs, format_table, make_plan, read_grid, write_answer
from lmm.study.charts import curves, strips
from lmm.study.plan import Plan

GRIDS: dict[int, dict[str, Any]] = {
    2: {"vary": {"loss": ["lm", "compound"]}, "baseline": {"loss": "lm"}},
    12: {
        "vary": {"loss": ["lm", "compound"], "width": [16, 32]},
        "seeds": [0, 1, 2],
        "baseline": {"loss": "lm", "width": 32},
    },
    40: {
        "vary": {
            "loss": ["lm", "compound"],
            "width": [16, 32],
            "lr": [1e-3, 2e-3, 3e-3, 4e-3, 5e-3],
        },
        "seeds": [0, 1],
        "baseline": {"loss": "lm", "width": 32, "lr": 2e-3},
    },
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory, small_store: str) -> dict[int, Plan]:
    found = {}
    for count, grid in GRIDS.items():
        found[count] = fabricated(tmp_path_factory.mktemp("study"), small_store, **grid)
        assert len(found[count].runs) == count
        write_answer(found[count])
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("browser") / "profile") as chromium:
        yield chromium


@pytest.mark.parametrize("count", GRIDS)
@pytest.mark.parametrize("width_px", [375, 1440])
def test_the_page_holds_in_a_browser(
    count: int, width_px: int, plans: dict[int, Plan], browser: Chromium
) -> None:
    browser.look(width_px, 900)
    page = plans[count].out / "report.html"
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width_px
    scrollers = "[...document.querySelectorAll('.scroll')]"
    assert browser.run(f"{scrollers}.every((one) => one.scrollWidth <= one.clientWidth)")
    assert browser.errors() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    rows = browser.run("document.querySelectorAll('.answer tbody tr').length")
    assert rows == len(plans[count].grid.settings)
    widths = "[...document.querySelectorAll('.strip svg')].map((one) => one.clientWidth)"
    assert min(browser.run(widths)) > 200


def test_a_picture_is_enlarged_and_left(plans: dict[int, Plan], browser: Chromium) -> None:
    browser.open(plans[12].out / "report.html")
    browser.run("document.querySelector('.differ .picture').click()")
    assert browser.run("document.querySelector('dialog').open")
    assert "loss lm, width 32" in browser.run("document.querySelector('dialog h2').textContent")
    browser.run("document.querySelector('dialog .close').click()")
    assert browser.errors() == []


def test_the_page_says_which_setting_is_best_and_which_runs_are_missing(
    small_store: str, tmp_path: Path
) -> None:
    plan = fabricated(tmp_path, small_store, seeds=[0, 1], **GRIDS[2])
    (plan.out / plan.runs[-1].scores_file).unlink()
    compared = write_answer(plan)
    page = (plan.out / "report.html").read_text()
    assert "No setting scores higher than the baseline, <b>loss lm</b>" in page
    assert f"1 of 4 runs are not scored: {plan.runs[-1].name}" in page
    assert [one.runs for one in compared] == [2, 1]
    assert "| 1 of 2 |" in (plan.out / "results.md").read_text()


def test_the_images_shown_are_those_on_which_settings_differ_most(plans: dict[int, Plan]) -> None:
    results, _ = compare_runs(plans[12])
    means = results.group_by("sample_id", "setting").agg(pl.col("dsc").mean())
    spans = means.group_by("sample_id").agg(span=pl.col("dsc").max() - pl.col("dsc").min())
    most = spans.sort("span", "sample_id", descending=[True, False])["sample_id"][0]
    page = (plans[12].out / "report.html").read_text()
    assert page.index(f"<h3>{most}</h3>") == page.index("<h3>")


def test_points_and_intervals_stand_where_their_numbers_are(plans: dict[int, Plan]) -> None:
    _, compared = compare_runs(plans[12])
    drawn = strips(compared)
    marks = {label: float(x) for x, label in drawn["ticks"]}
    assert marks["0"] == float(drawn["zero"])
    per_point = (marks["0"] - min(marks.values())) / -min(map(float, marks))
    for one, strip in zip(compared, drawn["by_setting"], strict=True):
        assert len(strip["seeds"]) == 3
        if one.difference:
            drawn_at = (*strip["mean"], *strip["interval"])
            found = [(float(x) - marks["0"]) / per_point for x in drawn_at]
            dsc = one.difference["dsc"]
            expected = [100 * value for value in (dsc.mean, *dsc.interval)]
            assert found == pytest.approx(expected, abs=0.3)


def test_curves_of_all_settings_have_the_same_axes(plans: dict[int, Plan]) -> None:
    drawn = curves(plans[12])
    assert drawn["last"] == "6"
    assert [len(lines) for lines in drawn["by_setting"]] == [3] * 4
    ends = {line.split()[-1].split(",")[0] for lines in drawn["by_setting"] for line in lines}
    assert ends == {"350.0"}


def test_tables_say_the_same_in_every_form(plans: dict[int, Plan]) -> None:
    plan = plans[2]
    _, compared = compare_runs(plan)
    rows = list(csv.DictReader(io.StringIO(format_table(plan, compared, "csv"))))
    assert [row["loss"] for row in rows] == ["lm", "compound"]
    assert rows[0]["baseline"] == "1"
    assert rows[0]["dsc_difference"] == ""
    difference = float(rows[1]["dsc"]) - float(rows[0]["dsc"])
    assert float(rows[1]["dsc_difference"]) == pytest.approx(difference, abs=0.011)
    said = f"{float(rows[1]['dsc_difference']):+.2f} ({float(rows[1]['dsc_low']):+.2f}"
    assert said in format_table(plan, compared, "markdown")
    latex = format_table(plan, compared, "latex")
    assert said in latex
    assert latex.startswith(r"\begin{tabular}{lrrrrrr}")
    assert f"**{rows[0]['dsc']}**" in format_table(plan, compared, "markdown")


def test_where_stores_are_compared_each_tokenizer_has_its_ceiling(
    small_store: str, store_copy: Path, tmp_path: Path
) -> None:
    grid = {
        "stores": {"a": small_store, "b": str(store_copy)},
        "vary": {"store": ["a", "b"], "width": [16, 32]},
        "seeds": [0, 1],
        "baseline": {"store": "a", "width": 16},
    }
    plan = make_plan(read_grid(grid_file(tmp_path, **grid)), tmp_path / "study", None)
    asked = [run.name for run in plan.runs if "--ceiling" in run.evaluate]
    assert asked == ["store=a,width=16,s0", "store=b,width=16,s0"]
    compared = write_answer(fabricate(plan))
    assert [one.ceiling for one in compared] == [0.99] * 4
    head, _, *rows = (plan.out / "results.md").read_text().splitlines()
    assert head.endswith("| ceiling DSC (%) |")
    assert all(row.endswith("| 99.00 |") for row in rows)
    assert (plan.out / "results.csv").read_text().splitlines()[0].endswith(",ceiling_dsc")
    assert "ceiling</th>" in (plan.out / "report.html").read_text()


def test_report_makes_the_page_of_a_study(plans: dict[int, Plan], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(plans[2].out), "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert page.read_bytes() == (plans[2].out / "report.html").read_bytes()
    two = CliRunner().invoke(main, ["report", str(plans[2].out), str(plans[12].out)])
    assert two.exit_code == 2
    assert "a study has a page of its own" in two.stderr
