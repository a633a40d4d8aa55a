"""Which epoch is kept: by hand on few numbers, and in a run whose scores are given."""

from pathlib import Path

import numpy as np
import pytest
import torch

import lmm.loop
from lmm.candidates import Candidates
from lmm.checkpoint import read_checkpoint
from lmm.latents import Latents
from lmm.selection import is_kept
from lmm.settings import TrainSettings
from lmm.step import Learner
from lmm.train import train
from pipeline.store import open_store

CPU = torch.device("cpu")

# Leads 0.1, 0.3, 0.1, 0.3: mean 0.2, standard deviation 0.1155, standard error 0.0577.
PEAK = np.array([0.8, 0.8, 0.8, 0.8])
SURELY_WORSE = np.array([0.7, 0.5, 0.7, 0.5])
# Leads 0.3, -0.3, 0.3, -0.1: mean 0.05, standard deviation 0.3, standard error 0.15.
ALIKE = np.array([0.5, 1.1, 0.5, 0.9])


@pytest.mark.parametrize(
    ("dsc", "on_val", "on_test"),
    [
        (SURELY_WORSE, False, False),
        (ALIKE, True, False),
        (PEAK, True, False),
        (PEAK + 0.01, True, True),
    ],
    ids=["worse by 3.5 errors", "worse by a third of an error", "equal", "better"],
)
def test_on_val_an_epoch_gives_way_only_to_one_that_is_surely_better(
    dsc: np.ndarray, on_val: bool, on_test: bool
) -> None:
    assert is_kept(dsc, PEAK, "val") is on_val
    assert is_kept(dsc, PEAK, "test") is on_test


def test_one_image_has_no_error_and_the_higher_is_kept() -> None:
    assert is_kept(np.array([0.6]), np.array([0.5]), "val")
    assert not is_kept(np.array([0.5]), np.array([0.6]), "val")


NAME = "conv0_4.resblock.conv1.2.weight"


@pytest.mark.parametrize(("select_on", "kept"), [("val", 3), ("test", 2)])
@pytest.mark.parametrize("stop_after", [4, 2])
def test_a_run_keeps_the_weights_of_the_epoch_that_was_chosen(
    select_on: str,
    kept: int,
    stop_after: int,
    small_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The third is within an error of the second, the best; the fourth is beyond one of the second
    # but not of the third.
    scores = [SURELY_WORSE, PEAK, ALIKE, np.array([0.6, 0.9, 0.6, 0.7])]
    assert is_kept(scores[3], scores[2], "val")
    weights: list[torch.Tensor] = []

    def scripted(learner: Learner, latents: Latents) -> tuple[dict[str, float], np.ndarray]:
        if len(weights) == stop_after:
            raise InterruptedError
        dsc = scores[len(weights)]
        weights.append(learner.model.state_dict()[NAME].clone())
        return {f"{select_on}_dsc": float(dsc.mean())}, dsc

    monkeypatch.setattr(lmm.loop, "validate", scripted)
    monkeypatch.setattr(lmm.loop, "Candidates", lambda run, _: Candidates(run, list("abcd")))
    settings = TrainSettings(
        loss="lm", epochs=4, batch_size=1, width=16, val_every=1, select_on=select_on
    )
    store, run = open_store(small_store), tmp_path / "run"
    if stop_after < settings.epochs:
        with pytest.raises(InterruptedError):
            train(store, run, settings, device=CPU)
        stop_after = settings.epochs
    summary = train(store, run, settings, device=CPU, resume=True)
    assert summary["best_epoch"] == kept
    assert summary["select_dsc"] == pytest.approx(scores[kept - 1].mean())
    chosen, _ = read_checkpoint(run / "best.safetensors")
    same = [torch.equal(chosen[NAME], weight) for weight in weights]
    assert same == [epoch == kept for epoch in range(1, 5)]
