"""The page in a browser: sorted, enlarged and left with the keyboard alone, and in silence."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import small
import torch
from chromium import ENTER, ESCAPE, TAB, Chromium

from lmm.evaluate import Wanted, evaluate, write_evaluation
from lmm.report import build_report
from lmm.run import open_run
from lmm.settings import TrainSettings
from lmm.train import train
from pipeline.archive import build_manifest
from pipeline.encode import encode
from pipeline.store import open_store
from pipeline.tokenizer import load_tokenizer

CPU = torch.device("cpu")
TRAINED = {"benign (1)": "train", "malignant (1)": "val"}
TESTED = ("benign (2)", "benign (10)", "malignant (3)", "benign <script>alert(1)<")
NAMES = "[...document.querySelectorAll('.each tbody tr th')].map((cell) => cell.textContent)"
PICTURES = "[...document.querySelectorAll('.picture')]"
ROWS = "[...document.querySelectorAll('.each tbody tr')]"
FOCUS = "document.activeElement"
DIALOG = "document.querySelector('dialog')"
WIDTH = "querySelector('svg').getBoundingClientRect().width"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, kl_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("page")
    root = small.write_busi(folder / "raw", (*TRAINED, *TESTED))
    splits = [*TRAINED.items(), *((name, "test") for name in TESTED)]
    pl.DataFrame(splits, schema=["sample_id", "split"], orient="row").write_csv(folder / "s.csv")
    manifest = build_manifest(root, "busi", split_file=folder / "s.csv").manifest
    encode(manifest, str(folder / "s.zarr"), load_tokenizer(str(kl_folder)), size=small.SIZE_PX)
    store = open_store(str(folder / "s.zarr"))
    settings = TrainSettings(loss="lm", epochs=1, batch_size=1, width=16)
    train(store, folder / "run", settings, device=CPU)
    run = open_run(folder / "run")
    evaluation = evaluate(run, store, "test", CPU, Wanted(native=True, ceiling=True))
    write_evaluation(evaluation, run.path / "evaluate")
    path = folder / "report.html"
    path.write_text(build_report([run], "test")[0], encoding="utf-8")
    return path


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Chromium]:
    with Chromium(tmp_path / "profile") as chromium:
        chromium.look(1440, 900)
        chromium.open(page)
        yield chromium


def test_the_page_asks_no_host_and_the_console_stays_empty(browser: Chromium, page: Path) -> None:
    browser.run("document.querySelector('.each .picture').click()")
    browser.run("document.querySelector('.sort').click()")
    elsewhere = [url for url in browser.requests() if not url.startswith("data:")]
    assert elsewhere == [page.as_uri()]
    assert browser.errors() == []


def test_a_request_or_a_script_of_another_s_is_refused_and_seen(browser: Chromium) -> None:
    # What the test above relies on: that a breach would be reported.
    browser.run(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'x.png'}),"
        " Object.assign(document.createElement('script'), {textContent: 'stolen = 1'}))"
    )
    assert browser.run("typeof stolen") == "undefined"
    assert len(browser.errors()) == 2


def test_a_name_that_is_html_is_shown_as_text(browser: Chromium) -> None:
    assert TESTED[3] in browser.run("document.querySelector('main').innerText")
    assert browser.run("document.querySelectorAll('script').length") == 1
    browser.run(f"{PICTURES}.find((one) => one.dataset.name === {TESTED[3]!r}).click()")
    assert browser.run("document.querySelector('dialog h2').textContent") == TESTED[3]


def test_samples_are_sorted_as_numbers_count_and_scores_by_value(browser: Chromium) -> None:
    click = "document.querySelectorAll('.sort')[{}].click()"
    sorting = "document.querySelector('.each [aria-sort]').getAttribute('aria-sort')"
    scores = f"{ROWS}.map((row) => Number(row.cells[{{}}].innerText))"
    assert browser.run(sorting) == "ascending"
    browser.run(click.format(0))
    names = ["benign (2)", "benign (10)", TESTED[3], "malignant (3)"]
    assert [name for name in browser.run(NAMES) if name in names[:2]] == names[:2]
    assert browser.run(NAMES)[-1].startswith("malignant (3)")
    for column, button in ((3, 2), (4, 3), (5, 4)):
        browser.run(click.format(button))
        assert browser.run(sorting) == "ascending"
        ascending = browser.run(scores.format(column))
        assert ascending == sorted(ascending)
        browser.run(click.format(button))
        assert browser.run(sorting) == "descending"
        assert browser.run(scores.format(column)) == sorted(ascending, reverse=True)
        assert browser.run("document.querySelectorAll('.each [aria-sort]').length") == 1


def test_tab_reaches_every_image_and_every_heading(browser: Chromium) -> None:
    reached = set()
    mark = f"{FOCUS}.dataset.seen = 1"
    for _ in range(browser.run("document.querySelectorAll('button, [tabindex]').length")):
        browser.press(TAB)
        reached.add(browser.run(f"{FOCUS}.className"))
        browser.run(mark)
    for kind in ("main .picture", ".sort"):
        assert browser.run(f"document.querySelectorAll('{kind}').length") > 0
        assert browser.run(f"document.querySelectorAll('{kind}:not([data-seen])').length") == 0
    assert {"picture", "sort"} <= reached


def test_enter_enlarges_an_image_and_escape_returns_to_it(browser: Chromium) -> None:
    while browser.run(f"{FOCUS}.className") != "picture":
        browser.press(TAB)
    name = browser.run(f"{FOCUS}.dataset.name")
    width_px = browser.run(f"{FOCUS}.{WIDTH}")
    browser.press(ENTER)
    assert browser.run(f"{DIALOG}.open")
    assert browser.run(f"{DIALOG}.querySelector('h2').textContent") == name
    assert browser.run(f"{DIALOG}.{WIDTH}") > width_px
    browser.press(("ArrowRight", 39, ""))
    assert browser.run(f"{DIALOG}.querySelector('h2').textContent") != name
    browser.press(ESCAPE)
    assert not browser.run(f"{DIALOG}.open")
    assert browser.run(f"{FOCUS}.dataset.name") == name


def test_enter_on_a_heading_sorts(browser: Chromium) -> None:
    before = browser.run(NAMES)
    browser.run("document.querySelector('.each [aria-sort] .sort').focus()")
    browser.press(ENTER)
    assert browser.run(NAMES) == before[::-1]


@pytest.mark.parametrize("width_px", [375, 1440])
def test_nothing_is_wider_than_the_screen(browser: Chromium, width_px: int) -> None:
    browser.look(width_px, 900)
    assert browser.run("document.documentElement.scrollWidth") <= width_px


@pytest.mark.parametrize("width_px", [375, 768, 1440])
def test_every_score_is_in_sight_without_scrolling_sideways(
    browser: Chromium, width_px: int
) -> None:
    browser.look(width_px, 900)
    bottom = "(one) => one.getBoundingClientRect().bottom"
    bottoms = browser.run(f"[...document.querySelectorAll('.scores div')].map({bottom})")
    assert len(bottoms) == 3
    assert max(bottoms) - min(bottoms) < 2  # score, ceiling and Otsu stand in one line
    scrollers = "[...document.querySelectorAll('.scroll')]"
    assert browser.run(f"{scrollers}.length") == 2
    assert browser.run(f"{scrollers}.every((one) => one.scrollWidth <= one.clientWidth)")


def test_contours_lie_over_every_image_truth_green_and_prediction_yellow(
    browser: Chromium,
) -> None:
    stroke = "getComputedStyle(document.querySelector('.{}')).stroke"
    assert browser.run(stroke.format("truth")) == "rgb(0, 196, 106)"
    assert browser.run(stroke.format("prediction")) == "rgb(255, 193, 7)"
    drawn = browser.run(
        f"{PICTURES}.map((one) => one.querySelector('use').getBoundingClientRect().width)"
    )
    assert len(drawn) >= 2 * len(TESTED)
    assert min(drawn) > 0


def test_the_dark_page_is_dark_and_the_printed_one_is_not(browser: Chromium) -> None:
    brightness = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)"
        ".reduce((sum, level) => sum + Number(level), 0) / 3"
    )
    browser.look(1440, 900, dark=True)
    assert browser.run(brightness) < 50
    browser.look(1440, 900, dark=True, media="print")
    assert browser.run(brightness) > 200
    browser.look(1440, 900)
    assert browser.run(brightness) > 200
