"""Tables for a paper: what is a row, what is bold, and names holding the format's own signs."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from lmm.report.tables import build_rows, format_table
from lmm.run import Run, create_run
from pipeline.errors import ArtefactError, UsageError


def write_run(path: Path, **settings: Any) -> Run:
    description = {
        "model": {"latent_channels": 4, "width": 32},
        "settings": {"loss": "lm", "epochs": 10, "seed": 0, **settings},
        "store": {"url": "busi.zarr", "images": {"test": "own"}, "receipt": {"views": 4}},
        "tokenizer": {"name": "taesd"},
    }
    return create_run(path, description)


def write_scores(run: Run, dsc: float, name: str = "busi-test", **more: Any) -> Run:
    folder = run.path / "evaluate"
    folder.mkdir(exist_ok=True)
    summary = {"dataset": "busi", "tokenizer": "taesd", "size": 224, "images_digest": "own"}
    summary |= {"store": "busi.zarr", "n": 130, "seen": {"train": 0, "select": 0}}
    summary |= {"missed": 3, "empty": 1, "false_alarms": 2}
    summary |= {"hd95_definition": "monai", "dsc": dsc, "iou": dsc / 2, "hd95": 40 * (1 - dsc)}
    (folder / f"{name}.json").write_text(json.dumps({**summary, **more}))
    return run


def lines_of(runs: list[Run], kind: str) -> list[str]:
    return format_table(build_rows(runs, "test"), kind).splitlines()


def test_seeds_of_equal_settings_are_one_row_with_mean_and_sd(tmp_path: Path) -> None:
    scores = (0.70, 0.72, 0.77)
    runs = [
        write_scores(write_run(tmp_path / f"s{seed}", seed=seed), dsc)
        for seed, dsc in enumerate(scores)
    ]
    row = next(csv.DictReader(io.StringIO(format_table(build_rows(runs, "test"), "csv"))))
    assert row["seeds"] == "3"
    assert row["dsc"] == "73.00"
    assert (row["missed"], row["empty"], row["false_alarms"]) == ("9", "3", "6")
    assert row["dsc_sd"] == f"{math.sqrt((9 + 1 + 16) / 2):.2f}" == "3.61"
    assert lines_of(runs, "markdown")[2] == (
        "| busi | taesd | lm | 73.00 ± 3.61 | 36.50 ± 1.80 | 10.80 ± 1.44 |"
    )
    assert lines_of(runs, "latex")[4] == (
        r"busi & taesd & lm & 73.00 $\pm$ 3.61 & 36.50 $\pm$ 1.80 & 10.80 $\pm$ 1.44 \\"
    )


def test_the_best_of_a_data_set_is_bold_and_hd95_is_best_when_low(tmp_path: Path) -> None:
    low = write_scores(write_run(tmp_path / "a", loss="lm"), 0.7)
    high = write_scores(write_run(tmp_path / "b", loss="seg"), 0.8)
    write_scores(low, 0.3, "glas-00000000-test", dataset="glas", images_digest="other")
    assert lines_of([low, high], "markdown")[2:] == [
        "| busi | taesd | lm | 70.00 | 35.00 | 12.00 |",
        "| glas | taesd | lm | 30.00 | 15.00 | 28.00 |",
        "| busi | taesd | seg | **80.00** | **40.00** | **8.00** |",
    ]
    bold = [line.count(r"\textbf") for line in lines_of([low, high], "latex")[4:7]]
    assert bold == [0, 0, 3]
    assert "*" not in format_table(build_rows([low, high], "test"), "csv")


def test_a_tokenizer_that_is_a_path_is_named_by_its_last_part(tmp_path: Path) -> None:
    names = ("/data/weights/taesd/", "./taesd", "madebyollin/taesd", "tiny-vae")
    runs = [
        write_scores(write_run(tmp_path / str(i)), 0.5, tokenizer=name, images_digest=str(i))
        for i, name in enumerate(names)
    ]
    shown = [row.tokenizer for row in build_rows(runs, "test")]
    assert shown == ["taesd", "taesd", "madebyollin/taesd", "tiny-vae"]


def test_scores_that_print_alike_are_both_best(tmp_path: Path) -> None:
    runs = [
        write_scores(write_run(tmp_path / loss, loss=loss), dsc)
        for loss, dsc in (("lm", 0.800001), ("seg", 0.800002))
    ]
    assert all("**80.00**" in line for line in lines_of(runs, "markdown")[2:])


def test_a_setting_is_a_column_where_runs_differ_in_it(tmp_path: Path) -> None:
    runs = [
        write_scores(write_run(tmp_path / str(epochs), epochs=epochs), 0.5) for epochs in (10, 20)
    ]
    assert lines_of(runs, "markdown")[0] == (
        "| data set | tokenizer | loss | epochs | DSC (%) | IoU (%) | HD95 (px) |"
    )
    assert len(lines_of(runs, "markdown")) == 4


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    run = write_scores(write_run(tmp_path / "a"), 0.5)
    assert [row.seeds for row in build_rows([run, run], "test")] == [1]


def test_samples_scored_under_two_names_of_their_store_count_once(tmp_path: Path) -> None:
    run = write_scores(write_run(tmp_path / "a"), 0.5)
    write_scores(run, 0.6, "renamed-test")
    os.utime(run.path / "evaluate" / "busi-test.json", (1, 1))
    rows = build_rows([run], "test")
    assert [row.seeds for row in rows] == [1]
    assert rows[0].scores["dsc"] == pytest.approx(60)


def test_names_are_escaped_in_each_format(tmp_path: Path) -> None:
    name = 'a_b|50%, "x" & <y>\\{*}#$~^'
    run = write_scores(write_run(tmp_path / "a"), 0.5, dataset=name)
    row = next(csv.DictReader(io.StringIO(format_table(build_rows([run], "test"), "csv"))))
    assert row["data set"] == name
    assert lines_of([run], "markdown")[2].startswith(
        r'| a\_b\|50%, "x" \& \<y\>\\\{\*\}\#$\~^ | taesd |'
    )
    assert lines_of([run], "latex")[4].startswith(
        r'a\_b\textbar{}50\%, "x" \& \textless{}y\textgreater{}\textbackslash{}\{*\}\#\$'
        r"\textasciitilde{}\textasciicircum{} & taesd &"
    )


@pytest.mark.parametrize("kind", ["csv", "markdown", "latex"])
def test_a_name_with_a_line_break_breaks_no_row(tmp_path: Path, kind: str) -> None:
    run = write_scores(write_run(tmp_path / "a"), 0.5, dataset="one\ntwo")
    text = format_table(build_rows([run], "test"), kind)
    if kind == "csv":
        assert [len(row) for row in csv.reader(io.StringIO(text))] == [13, 13]
    else:
        assert "one two" in text


def write_fold(path: Path, seed: int, fold: int, dsc: float, n: int, **more: Any) -> Run:
    folds = {"0": "digest of 0", "1": "digest of 1"}
    run = write_run(path / f"{seed}-{fold}", seed=seed, fold=fold)
    scored = {"n": n, "folds": folds, "images_digest": str(fold), **more}
    return write_scores(run, dsc, "busi-fold", **scored)


def test_folds_of_a_seed_are_one_score_of_every_image_once(tmp_path: Path) -> None:
    runs = [
        write_fold(tmp_path, seed=0, fold=0, dsc=0.8, n=30),
        write_fold(tmp_path, seed=0, fold=1, dsc=0.4, n=10),
        write_fold(tmp_path, seed=1, fold=0, dsc=0.6, n=30),
        write_fold(tmp_path, seed=1, fold=1, dsc=0.6, n=10),
    ]
    (row,) = build_rows(runs, "fold")
    # (30 · 0.8 + 10 · 0.4) / 40 = 0.7, and 0.6.
    assert row.seeds == 2
    assert row.scores["dsc"] == pytest.approx(65)
    assert row.sds is not None
    assert row.sds["dsc"] == pytest.approx(10 / math.sqrt(2))
    assert "fold" not in format_table([row], "csv").splitlines()[0].split(",")


def test_a_seed_without_one_run_of_each_fold_is_refused(tmp_path: Path) -> None:
    first = write_fold(tmp_path, seed=3, fold=1, dsc=0.8, n=30)
    with pytest.raises(UsageError, match=r"seed 3 has runs of folds 1; the store has 0, 1"):
        build_rows([first], "fold")
    both = [first, write_fold(tmp_path, seed=3, fold=0, dsc=0.8, n=30)]
    assert len(build_rows(both, "fold")) == 1
    again = write_fold(tmp_path / "again", seed=3, fold=0, dsc=0.8, n=30)
    with pytest.raises(UsageError, match=r"folds 0, 0, 1"):
        build_rows([*both, again], "fold")


def test_folds_drawn_anew_are_another_row(tmp_path: Path) -> None:
    drawn = {"0": "other", "1": "others"}
    runs = [
        write_fold(tmp_path / str(i), seed=0, fold=fold, dsc=0.8, n=30, folds=folds)
        for i, folds in enumerate(({"0": "a", "1": "b"}, drawn))
        for fold in (0, 1)
    ]
    assert len(build_rows(runs, "fold")) == 2


def test_runs_made_before_a_setting_was_there_are_in_the_row_of_its_default(
    tmp_path: Path,
) -> None:
    old = write_scores(write_run(tmp_path / "old", seed=0), 0.5)
    new = write_scores(write_run(tmp_path / "new", seed=1, fold=None), 0.5)
    assert [row.seeds for row in build_rows([old, new], "test")] == [2]


def test_other_definitions_of_hd95_are_not_put_in_one_column(tmp_path: Path) -> None:
    runs = [
        write_scores(write_run(tmp_path / kind, loss=kind), 0.5, hd95_definition=kind)
        for kind in ("monai", "pooled")
    ]
    with pytest.raises(UsageError, match=r"different definitions of HD95: \['monai', 'pooled'\]"):
        build_rows(runs, "test")


def test_a_run_without_scores_says_how_to_score_it(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="has not been scored on test") as error:
        build_rows([write_run(tmp_path / "a")], "test")
    assert "gms-lmm evaluate --run" in error.value.fix


def test_scores_on_images_that_were_seen_say_so_and_are_best_of_none(tmp_path: Path) -> None:
    honest = [
        write_scores(write_run(tmp_path / loss, loss=loss), dsc)
        for loss, dsc in (("lm", 0.7), ("seg", 0.6))
    ]
    run = write_run(tmp_path / "seen", loss="compound")
    write_scores(run, 0.9, "busi-test-seen", seen={"train": 12, "select": 3})
    lines = lines_of([*honest, run], "markdown")
    assert lines[0].startswith("| data set | tokenizer | loss | seen | DSC")
    assert lines[2].startswith("| busi | taesd | lm |  | **70.00** |")
    said = "12 of 130 were trained on, 3 of 130 chose the epoch"
    assert lines[4].startswith(f"| busi | taesd | compound | {said} | 90.00 |")


def test_what_imported_weights_have_seen_is_said_to_be_unknown(tmp_path: Path) -> None:
    description = {"settings": None, "store": None, "imported_from": "theirs.pth"}
    run = create_run(tmp_path / "run", description)
    write_scores(run, 0.9, "busi-12345678-test", seen=None)
    row = next(csv.DictReader(io.StringIO(format_table(build_rows([run], "test"), "csv"))))
    assert row["seen"] == "seen: not known"


def test_one_data_set_split_anew_is_another_row(tmp_path: Path) -> None:
    runs = [
        write_scores(write_run(tmp_path / str(i), seed=i), 0.5, images_digest=str(i))
        for i in range(2)
    ]
    assert [row.seeds for row in build_rows(runs, "test")] == [1, 1]
