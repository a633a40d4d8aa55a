"""Splits and folds: which samples a run trains on, and which it never sees."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from lmm.batches import Resident, Streamed, open_batches
from lmm.decoder import MaskDecoder
from lmm.latents import load_latents
from lmm.settings import TrainSettings
from lmm.splits import digests_of_folds, rows_of_split
from lmm.student.file import kept_student, load_student, student_file
from lmm.train import describe
from pipeline.errors import UsageError
from pipeline.store import LatentStore, open_store
from pipeline.tokenizer import Tokenizer

CPU = torch.device("cpu")
SAMPLES = pl.DataFrame(
    {
        "image_sha256": ["a", "b", "c", "d", "e", "f", "g"],
        "mask_sha256": ["1", "2", "3", "4", "5", "6", "7"],
        "split": ["train", "train", "test", "train", "val", None, "train"],
        "fold": pl.Series([0, 1, None, 1, None, 1, None], dtype=pl.Int32),
    }
)


@pytest.mark.parametrize(
    ("split", "fold", "rows"),
    [
        ("train", None, [0, 1, 3, 6]),
        ("train", 1, [0, 6]),
        ("fold", 1, [1, 3]),
        ("train", 0, [1, 3, 6]),
        ("fold", 0, [0]),
        ("val", 1, [4]),
        ("test", 1, [2]),
    ],
)
def test_a_run_of_a_fold_trains_on_all_of_train_but_that_fold(
    split: str, fold: int | None, rows: list[int]
) -> None:
    assert rows_of_split(SAMPLES, split, fold).tolist() == rows


def test_an_unknown_fold_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no fold 2 in the store, only 0, 1"):
        rows_of_split(SAMPLES, "train", 2)
    with pytest.raises(UsageError, match="no fold 0 in the store, and no other"):
        rows_of_split(SAMPLES.drop("fold"), "train", 0)
    with pytest.raises(UsageError, match="left no fold out"):
        rows_of_split(SAMPLES, "fold")


def test_folds_are_told_apart_by_what_is_in_them_and_not_by_its_order() -> None:
    digests = digests_of_folds(SAMPLES)
    assert list(digests) == ["0", "1"]
    assert digests_of_folds(SAMPLES.reverse()) == digests
    moved = SAMPLES.with_columns(fold=pl.Series([1, 1, None, 0, None, 1, None], dtype=pl.Int32))
    assert all(digests_of_folds(moved)[fold] != digest for fold, digest in digests.items())
    assert digests_of_folds(SAMPLES.drop("fold")) == {}


@pytest.fixture
def folded(store_copy: Path) -> LatentStore:
    """The small store with each sample of train in one of two folds."""
    file = store_copy / "samples.parquet"
    samples = pl.read_parquet(file).drop("fold", strict=False)
    in_train = pl.col("split") == "train"
    number = (in_train.cum_sum() % 2).cast(pl.Int32)
    samples.with_columns(fold=pl.when(in_train).then(number)).write_parquet(file)
    return open_store(str(store_copy))


@pytest.mark.parametrize("residency", ["ram", "stream"])
def test_no_batch_of_a_run_holds_a_sample_of_its_fold(residency: str, folded: LatentStore) -> None:
    settings = TrainSettings(loss="lm", batch_size=1, residency=residency, fold=1)
    batches = open_batches(folded, settings, CPU)
    if isinstance(batches, Resident):
        ids = batches.latents.sample_ids
    else:
        assert isinstance(batches, Streamed)
        ids = folded.samples["sample_id"].gather(batches.reader.places).to_list()
    trained = folded.samples.filter(split="train", fold=0)["sample_id"].to_list()
    assert ids == trained
    assert len(batches) == describe(folded, settings)["samples"] == len(trained)
    left_out = load_latents(folded, "fold", fold=1)
    assert set(left_out.sample_ids).isdisjoint(ids)
    assert len(left_out) + len(ids) == folded.samples.filter(split="train").height


def test_a_student_of_a_fold_is_taught_without_it(
    folded: LatentStore, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_student(folded, MaskDecoder(tokenizer))
    left_out = load_latents(folded, "fold", fold=1).z_mask
    seen: list[torch.Tensor] = []

    def note(self: MaskDecoder, z_mask_hat: torch.Tensor) -> None:
        seen.append(z_mask_hat)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr("lmm.student.file.distil", lambda teacher, z_mask, *_: note(teacher, z_mask))
        with pytest.raises(InterruptedError):
            load_student(folded, MaskDecoder(tokenizer), fold=1)
    assert len(seen[0]) == folded.views * folded.samples.filter(split="train", fold=0).height
    assert not any(torch.equal(latent, other) for latent in seen[0] for other in left_out)
    without = load_student(folded, MaskDecoder(tokenizer), fold=1)
    assert Path(f"{folded.url}.{student_file(1)}").exists()
    assert without.digest != whole.digest
    kept = kept_student(folded, CPU, fold=1)
    assert kept is not None
    assert kept.digest == without.digest


def test_folds_are_trained_scored_and_put_in_one_table_by_the_command_line(
    folded: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = folded.url
    short = [
        "--loss",
        "lm",
        "--epochs",
        "1",
        "--batch-size",
        "1",
        "--width",
        "16",
        "--precision",
        "fp32",
        "--json",
    ]
    scores = []
    for fold in (0, 1):
        run = f"runs/{folded.name}-lm-fold{fold}-s0"
        for words in (
            ["train", "--latents", url, "--fold", str(fold), *short],
            ["evaluate", "--run", run, "--latents", url, "--split", "fold", "--json"],
        ):
            result = CliRunner().invoke(main, words)
            assert result.exit_code == 0, result.output
        scores.append(json.loads(result.stdout))
        own = folded.samples.filter(split="train", fold=fold)["sample_id"].to_list()
        assert pl.read_parquet(scores[-1]["per_image"])["sample_id"].to_list() == sorted(own)
        assert Path(scores[-1]["per_image"]).name == f"{folded.name}-fold.parquet"
    words = ["report", *map(str, Path("runs").iterdir()), "--split", "fold", "--table", "csv"]
    result = CliRunner().invoke(main, [*words, "--json"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    means = [one["dsc"] for one in scores for _ in range(one["n"])]
    assert row["scores"]["dsc"] == pytest.approx(100 * sum(means) / len(means))
    assert row["seeds"] == 1
    result = CliRunner().invoke(main, words[:-2])
    assert result.exit_code == 2
    assert "fix: --table markdown" in result.stderr
    words = ["train", "--latents", url, "--fold", "7", *short]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "no fold 7 in the store, only 0, 1" in result.stderr


def test_the_fold_is_a_setting_of_the_run() -> None:
    assert replace(TrainSettings(), fold=2) != TrainSettings()
    with pytest.raises(UsageError, match="--fold -1 is too small"):
        TrainSettings(fold=-1)
