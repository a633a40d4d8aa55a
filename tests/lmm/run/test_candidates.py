"""The choice of an epoch by a rule that looks back: weights are there, also for a resumed run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import lmm.loop
from lmm.latents import Latents
from lmm.run.candidates import Candidates
from lmm.run.checkpoint import read_checkpoint
from lmm.settings import TrainSettings
from lmm.step import Learner
from lmm.train import train
from pipeline.errors import ArtefactError
from pipeline.store import open_store

CPU = torch.device("cpu")
NAME = "conv0_4.resblock.conv1.2.weight"
SETTINGS = TrainSettings(loss="lm", epochs=6, batch_size=1, width=16, val_every=1)
# Chosen after each, by the means of neighbours below: 1, 1, 3, 4, 5, and then 4 again.
SCORES = (0.1, 0.2, 0.3, 0.8, 0.4, 0.3)


def smoothed(epochs: Sequence[int], dsc: np.ndarray, settings: TrainSettings) -> int:
    """The epoch whose mean with its neighbours is highest, the first of equals."""
    means = dsc.mean(axis=1)
    around = [means[max(0, i - 1) : i + 2].mean() for i in range(len(means))]
    return epochs[int(np.argmax(np.round(around, 6)))]


def latest_three(epochs: Sequence[int], dsc: np.ndarray, settings: TrainSettings) -> list[int]:
    return list(epochs[-3:])


class Killed(BaseException):
    """As by a signal: nothing that catches errors sees it."""


class Script:
    """Validation by given scores; notes the weights of every epoch."""

    def __init__(self, steps_an_epoch: int) -> None:
        self.steps_an_epoch = steps_an_epoch
        self.weights: dict[int, torch.Tensor] = {}

    def __call__(self, learner: Learner, latents: Latents) -> tuple[dict[str, float], np.ndarray]:
        epoch = learner.steps // self.steps_an_epoch
        self.weights[epoch] = learner.model.state_dict()[NAME].clone()
        score = SCORES[epoch - 1]
        return {"val_dsc": score}, np.array([score] * len(latents))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, small_store: str) -> Script:
    script = Script(open_store(small_store).samples["split"].to_list().count("train"))
    monkeypatch.setattr(lmm.loop, "validate", script)
    monkeypatch.setattr(lmm.loop, "choose", smoothed)
    monkeypatch.setattr(lmm.loop, "contenders", latest_three)
    return script


def test_an_epoch_of_the_past_is_chosen_with_its_own_weights(
    script: Script, small_store: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    summary = train(open_store(small_store), run, SETTINGS, device=CPU)
    # (0.3 + 0.8 + 0.4) / 3 = (0.8 + 0.4 + 0.3) / 3 = 0.5, the first of equals.
    assert summary["best_epoch"] == 4
    assert summary["val_dsc"] == pytest.approx(0.8)
    chosen, progress = read_checkpoint(run / "best.safetensors")
    assert torch.equal(chosen[NAME], script.weights[4])
    assert progress == {"epoch": 4, "dsc": pytest.approx(0.8)}
    assert not (run / "candidates").exists()
    rows = pl.read_parquet(run / "validations.parquet")
    assert rows["epoch"].unique(maintain_order=True).to_list() == [1, 2, 3, 4, 5, 6]
    assert rows.group_by("epoch", maintain_order=True).agg(pl.col("dsc").mean())[
        "dsc"
    ].to_list() == pytest.approx(SCORES)


@pytest.mark.parametrize("epoch", [5, 6])
@pytest.mark.parametrize("before", ["add", "best.safetensors", "last.safetensors", "drop"])
def test_killed_before_any_file_is_written_or_removed_a_run_resumes_to_the_same_choice(
    before: str,
    epoch: int,
    script: Script,
    small_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, store = tmp_path / "run", open_store(small_store)
    write, add, drop = lmm.loop.write_checkpoint, Candidates.add, Candidates.drop

    def deadly(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def calling(*given: Any) -> None:
            if before in (name, getattr(given[0], "name", "")) and max(script.weights) == epoch:
                raise Killed
            call(*given)

        return calling

    with monkeypatch.context() as patch:
        patch.setattr(lmm.loop, "write_checkpoint", deadly("write", write))
        patch.setattr(Candidates, "add", deadly("add", add))
        patch.setattr(Candidates, "drop", deadly("drop", drop))
        with pytest.raises(Killed):
            train(store, run, SETTINGS, device=CPU)
    assert len(list((run / "candidates").iterdir())) <= 4
    summary = train(store, run, SETTINGS, device=CPU, resume=True)
    assert summary["best_epoch"] == 4
    chosen, _ = read_checkpoint(run / "best.safetensors")
    assert torch.equal(chosen[NAME], script.weights[4])
    assert not (run / "candidates").exists()
    assert pl.read_parquet(run / "validations.parquet")["epoch"].n_unique() == 6


def test_only_epochs_that_may_be_chosen_are_kept(tmp_path: Path) -> None:
    candidates = Candidates(tmp_path, ["a"])
    for epoch in (5, 10, 15):
        candidates.keep(epoch, {"w": torch.tensor([float(epoch)])})
    candidates.drop([10, 15])
    names = sorted(file.name for file in (tmp_path / "candidates").iterdir())
    assert names == ["epoch-0010.safetensors", "epoch-0015.safetensors"]
    assert candidates.weights(10)["w"].item() == 10
    candidates.drop()
    assert not (tmp_path / "candidates").exists()


def test_validations_come_back_bit_for_bit_and_those_after_a_checkpoint_do_not(
    tmp_path: Path,
) -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random(3), draw.random(3)
    candidates = Candidates(tmp_path, ["a", "b", "c"])
    candidates.add(5, first)
    candidates.add(10, second)
    again = Candidates(tmp_path, ["a", "b", "c"])
    again.restore(1)
    assert again.epochs == [5]
    np.testing.assert_array_equal(again.dsc, first[None])
    again.add(10, second)
    np.testing.assert_array_equal(again.dsc, candidates.dsc)


def test_validations_that_are_gone_are_an_error(tmp_path: Path) -> None:
    candidates = Candidates(tmp_path, ["a"])
    candidates.add(5, np.array([0.5]))
    with pytest.raises(ArtefactError, match="has 1 of 2 validations"):
        Candidates(tmp_path, ["a"]).restore(2)
    (tmp_path / "validations.parquet").write_bytes(b"no parquet")
    with pytest.raises(ArtefactError, match=r"validations\.parquet cannot be read"):
        Candidates(tmp_path, ["a"]).restore(1)
