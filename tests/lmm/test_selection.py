"""Which epoch is kept: by hand on few numbers, and in a run whose scores are given."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

import lmm.loop
from lmm.latents import Latents
from lmm.run.candidates import Candidates
from lmm.run.checkpoint import read_checkpoint
from lmm.selection import choose, contenders
from lmm.settings import TrainSettings
from lmm.step import Learner
from lmm.train import train
from pipeline.store import open_store

CPU = torch.device("cpu")

SETTINGS = TrainSettings(epochs=100)  # five of them are the width of the window


def images(means: Sequence[float]) -> np.ndarray:
    """Four images of each validation, with these means."""
    return np.array(means)[:, None] + np.array([-0.2, -0.1, 0.1, 0.2])


def test_the_smoothed_mean_decides_and_is_that_of_scipy() -> None:
    means = np.random.default_rng(0).uniform(0.5, 0.8, 20)
    epochs = [*range(5, 101, 5)]
    # One validation is one width of the window, which ends before three.
    window = {"sigma": 1, "truncate": 2, "mode": "constant"}
    smooth = gaussian_filter1d(means, **window) / gaussian_filter1d(np.ones(20), **window)
    assert choose(epochs, images(means), SETTINGS) == epochs[int(smooth.argmax())]
    assert smooth.argmax() != means.argmax()


def test_a_lucky_epoch_is_passed_over_on_val_and_kept_on_test() -> None:
    means = [0.5, 0.6, 0.8, 0.6, 0.7, 0.72, 0.74, 0.74]
    epochs = [*range(5, 41, 5)]
    assert choose(epochs, images(means), SETTINGS) == 40
    on_test = replace(SETTINGS, select_on="test")
    assert choose(epochs, images(means), on_test) == 15


def test_a_rising_curve_keeps_its_end_and_a_falling_one_its_top() -> None:
    epochs = np.arange(1, 101)
    rising = 0.8 * (1 - np.exp(-epochs / 30))
    assert choose(epochs.tolist(), images(rising), SETTINGS) == 100
    falling = rising - 0.3 * np.clip((epochs - 40) / 60, 0, 1)
    assert abs(choose(epochs.tolist(), images(falling), SETTINGS) - falling.argmax() - 1) <= 3


def test_of_equal_epochs_the_later_is_kept() -> None:
    assert choose([5, 10, 15], images([0.7, 0.7, 0.7]), SETTINGS) == 15


def test_whatever_is_chosen_later_was_among_the_contenders_ever_since() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        dsc = images(rng.uniform(0.6, 0.7, 50))
        epochs = [*range(2, 101, 2)]
        final = choose(epochs, dsc, SETTINGS)
        for k in range(epochs.index(final) + 1, 51):
            held = contenders(epochs[:k], dsc[:k], SETTINGS)
            assert final in held
            assert choose(epochs[:k], dsc[:k], SETTINGS) in held
            assert len(held) <= 1 + 15 / 2 + 1


NAME = "conv0_4.resblock.conv1.2.weight"


@pytest.mark.parametrize(("select_on", "kept"), [("val", 4), ("test", 2)])
@pytest.mark.parametrize("stop_after", [4, 2])
def test_a_run_keeps_the_weights_of_the_epoch_that_was_chosen(
    select_on: str,
    kept: int,
    stop_after: int,
    small_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of four epochs a window is so narrow that validations stand alone: the later of two equals.
    scores = [np.array(one) for one in ([0.5, 0.6], [0.9, 0.7], [0.6, 0.6], [0.8, 0.8])]
    weights: list[torch.Tensor] = []

    def scripted(learner: Learner, latents: Latents) -> tuple[dict[str, float], np.ndarray]:
        if len(weights) == stop_after:
            raise InterruptedError
        dsc = scores[len(weights)]
        weights.append(learner.model.state_dict()[NAME].clone())
        return {f"{select_on}_dsc": float(dsc.mean())}, dsc

    monkeypatch.setattr(lmm.loop, "validate", scripted)
    monkeypatch.setattr(lmm.loop, "Candidates", lambda run, _: Candidates(run, list("ab")))
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
