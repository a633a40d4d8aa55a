"""Splits and folds: which samples a run trains on, and which it never sees."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from lmm.batches import Resident, Streamed, open_batches
from lmm.decoder import MaskDecoder
from lmm.latents import load_latents
from lmm.run import open_run
from lmm.settings import TrainSettings
from lmm.splits import digests_of_folds, rows_of_split, rows_to_train_on
from lmm.student.file import kept_student, load_student, student_file
from lmm.train import describe, train
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


GROUPED = pl.DataFrame(
    {
        "sample_id": [f"s{i}" for i in range(40)],
        "image_sha256": [f"{i:x}" for i in range(40)],
        "mask_sha256": ["m"] * 40,
        "split": ["train"] * 30 + ["val"] * 5 + ["test"] * 5,
        "group_id": [f"g{i // 2}" for i in range(40)],  # pairs,
        "twin_group": [f"t{i}" if i % 7 else "t" for i in range(40)],  # and every seventh tied
        "fold": pl.Series([i // 2 % 3 for i in range(40)], dtype=pl.Int32),
    }
)


def trained_on(samples: pl.DataFrame, **settings: Any) -> set[str]:
    rows = rows_to_train_on(samples, TrainSettings(**settings))
    assert rows.tolist() == sorted(rows.tolist())
    return {*samples["sample_id"].gather(rows)}


def test_a_smaller_share_of_train_is_part_of_a_larger_one() -> None:
    shares = [trained_on(GROUPED, share=share) for share in (0.1, 0.2, 0.5, 0.9, 1.0)]
    assert all(smaller < larger for smaller, larger in pairwise(shares[:-1]))
    assert [len(one) // 3 for one in shares[:2]] >= [1, 2]
    assert shares[-1] == trained_on(GROUPED) == {f"s{i}" for i in range(30)}


def test_a_share_tears_no_group_and_no_twins_apart() -> None:
    tied = [{f"s{i}" for i in range(30) if i % 7 == 0 or (i ^ 1) % 7 == 0}]
    tied += [{f"s{i}", f"s{i + 1}"} for i in range(0, 30, 2)]
    for seed in range(5):
        for share in (0.1, 0.3, 0.6):
            drawn = trained_on(GROUPED, share=share, seed=seed)
            assert all(one <= drawn or not one & drawn for one in tied)


def test_a_share_is_drawn_by_seed_and_content_and_not_by_the_order_of_a_store() -> None:
    drawn = {frozenset(trained_on(GROUPED, share=0.2, seed=seed)) for seed in range(5)}
    assert len(drawn) > 1
    assert trained_on(GROUPED.reverse(), share=0.2) == trained_on(GROUPED, share=0.2)


def test_a_share_of_a_fold_s_run_is_a_share_of_what_it_keeps() -> None:
    kept = trained_on(GROUPED, fold=1)
    part = trained_on(GROUPED, fold=1, share=0.5)
    assert part < kept
    assert len(part) >= len(kept) / 2


def test_a_run_of_a_share_is_trained_on_it_and_says_so_in_its_lineage(
    store_copy: Path, tmp_path: Path
) -> None:
    store = open_store(str(store_copy))
    settings = TrainSettings(
        loss="lm", epochs=1, batch_size=1, width=16, share=0.5, residency="ram"
    )
    drawn = trained_on(store.samples, share=0.5)
    assert 0 < len(drawn) < store.samples.filter(split="train").height
    batches = open_batches(store, settings, CPU)
    assert isinstance(batches, Resident)
    assert {*batches.latents.sample_ids} == drawn
    assert describe(store, settings)["samples"] == len(drawn)
    train(store, tmp_path / "run", settings, device=CPU)
    lineage = open_run(tmp_path / "run").lineage()
    assert lineage is not None
    assert {*lineage.filter(role="train")["sample_id"]} == drawn


@pytest.mark.parametrize("residency", ["ram", "stream"])
def test_a_run_of_fewer_views_reads_the_first_of_the_store(
    residency: str, small_store: str
) -> None:
    store = open_store(small_store)
    settings = TrainSettings(loss="lm", batch_size=1, views=1, residency=residency)
    firsts = load_latents(store, "train", views=1).z_mask
    batches = open_batches(store, settings, CPU)
    seen = [batch.z_mask[0] for epoch in range(4) for batch in batches.epoch(epoch)]
    assert all(any(torch.equal(one, first) for first in firsts) for one in seen)
    assert describe(store, settings)["views"] == 1


def test_more_views_than_a_store_has_are_refused(small_store: str) -> None:
    with pytest.raises(UsageError, match=r"--views 4 of .*, which has 3"):
        describe(open_store(small_store), TrainSettings(views=4))


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
