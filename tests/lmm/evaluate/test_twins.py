"""Groups and twins: what belongs together, and scores without what was trained on nearly."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from lmm.evaluate import evaluate, write_evaluation
from lmm.evaluate.twins import twins_in_train
from lmm.metrics import summarise
from lmm.report import build_report
from lmm.report.tables import build_rows, format_table
from lmm.run import Run
from lmm.splits import groups_of
from pipeline.store import LatentStore, open_store

CPU = torch.device("cpu")
SAMPLES = pl.DataFrame(
    {
        "sample_id": ["a", "b", "c", "d", "e", "f"],
        "group_id": ["p", "p", "q", "r", "s", "t"],
        "twin_group": ["a", "b", "b", "d", "e", None],
        "image_sha256": ["1", "2", "3", "4", "5", "6"],
    }
)


def test_a_group_is_what_group_or_twins_tie_step_by_step() -> None:
    # a and b are of one patient, b and c are twins.
    a, b, c, d, e, f = groups_of(SAMPLES, list("abcdef")).tolist()
    assert a == b == c
    assert len({a, d, e, f}) == 4
    alone = groups_of(SAMPLES.drop("twin_group"), ["c", "a", "b"]).tolist()
    assert alone[1] == alone[2] != alone[0]


def test_a_twin_is_found_through_the_images_trained_on() -> None:
    lineage = pl.DataFrame({"image_sha256": ["2", "4"], "role": ["train", "select"]})
    ids = ["f", "d", "c"]
    found = twins_in_train(lineage, SAMPLES, ids)
    assert found is not None
    assert found.tolist() == [False, False, True]
    assert twins_in_train(None, SAMPLES, ids) is None
    assert twins_in_train(lineage, SAMPLES.drop("twin_group"), ids) is None


@pytest.fixture
def store(small_store: str, monkeypatch: pytest.MonkeyPatch) -> LatentStore:
    """The small store, whose first test image is a twin of the first that is trained on."""
    opened = LatentStore.__init__

    def with_twins(self: LatentStore, *words: str) -> None:
        opened(self, *words)
        known = self.samples.filter(split="train")["sample_id"][0]
        twin = pl.col("sample_id") == self.samples.filter(split="test")["sample_id"][0]
        twin_group = pl.when(twin).then(pl.lit(known)).otherwise("sample_id")
        self.samples = self.samples.with_columns(twin_group=twin_group)

    monkeypatch.setattr(LatentStore, "__init__", with_twins)
    return open_store(small_store)


def test_scores_without_twins_stand_beside_those_of_all(
    small_run: Run, store: LatentStore, tmp_path: Path
) -> None:
    evaluation = evaluate(small_run, store, "test", CPU)
    table, summary = evaluation.per_image, evaluation.summary
    assert table["twin_in_train"].sum() == 1
    rest = table.filter(~pl.col("twin_in_train"))
    assert summary["without_twins"]["n"] == len(rest) == summary["n"] - 1
    assert summary["without_twins"]["dsc"] == pytest.approx(rest["dsc"].mean())
    assert (
        summary["without_twins"].keys()
        == summarise({name: rest[name].to_numpy() for name in rest.columns[3:-2]}).keys()
    )

    run = Run(tmp_path, small_run.description)
    for file in ("lineage.parquet", "log.jsonl", "summary.json"):
        (tmp_path / file).write_bytes((small_run.path / file).read_bytes())
    write_evaluation(evaluation, tmp_path / "evaluate")
    assert "without 1 twins of images trained on" in build_report([run], "test")[0]
    dsc = f"{100 * summary['without_twins']['dsc']:.2f}"
    heading, row = format_table(build_rows([run], "test"), "csv").splitlines()
    assert row.split(",")[heading.split(",").index("dsc_without_twins")] == dsc


def test_the_console_has_a_table_without_twins(
    small_run: Run, store: LatentStore, tmp_path: Path
) -> None:
    for file in small_run.path.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    words = ["--run", str(tmp_path), "--latents", store.url, "--device", "cpu"]
    result = CliRunner().invoke(main, ["evaluate", *words])
    assert result.exit_code == 0, result.output
    assert "without 1 twins of images trained on" in " ".join(result.stdout.split())


def test_a_store_of_before_twins_says_nothing_of_them(small_run: Run, small_store: str) -> None:
    store = open_store(small_store)
    store.samples = store.samples.drop("twin_group", strict=False)
    evaluation = evaluate(small_run, store, "test", CPU)
    assert "without_twins" not in evaluation.summary
    assert "twin_in_train" not in evaluation.per_image.columns


def test_intervals_are_of_groups(
    small_run: Run, small_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(small_store)
    monkeypatch.setattr(store, "require_complete", lambda: None)  # the receipt is of other groups
    store.samples = store.samples.with_columns(group_id=pl.lit("one patient"))
    summary = evaluate(small_run, store, "test", CPU).summary
    # A single group is always drawn: its mean is all that there is.
    assert summary["groups"] == 1
    np.testing.assert_allclose(summary["dsc_ci95"], [summary["dsc"]] * 2)
