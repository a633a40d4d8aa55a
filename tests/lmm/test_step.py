"""One optimiser step: frozen decoders, the parts of the loss, the student's lessons."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lmm.step
from lmm.batches import open_batches
from lmm.decoder import MaskDecoder
from lmm.latents import Batch
from lmm.losses import loss_of, seg_gradient
from lmm.settings import LEVELS, TrainSettings
from lmm.step import Learner
from lmm.train import new_learner
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer, load_tokenizer

CPU = torch.device("cpu")
QUICK = TrainSettings(loss="compound", seg_decoder="full", batch_size=2, width=16)


@pytest.fixture
def fresh(kl_folder: Path) -> Tokenizer:
    """A tokenizer of the test's own."""
    return load_tokenizer(str(kl_folder))


def learner_and_batch(
    url: str, tokenizer: Tokenizer, settings: TrainSettings
) -> tuple[Learner, Batch]:
    store = open_store(url)
    batch = next(iter(open_batches(store, replace(settings, loss="compound"), CPU).epoch(1)))
    return new_learner(store, settings, tokenizer), batch


def test_all_levels_are_decoded_by_one_call_where_there_is_room(
    small_store: str, fresh: Tokenizer
) -> None:
    learner, batch = learner_and_batch(small_store, fresh, QUICK)
    learner.teacher.at_a_time = 64
    parts = learner.step(batch)
    assert learner.teacher.calls == 1
    assert parts.keys() == {"lm", "seg"}


@pytest.mark.parametrize("seg_decoder", ["full", "student"])
def test_the_dice_loss_reaches_the_lmm_and_leaves_its_decoder_as_it_was(
    seg_decoder: str, small_store: str, fresh: Tokenizer, kl_folder: Path
) -> None:
    settings = replace(QUICK, loss="seg", seg_decoder=seg_decoder)
    learner, batch = learner_and_batch(small_store, fresh, settings)
    frozen = [fresh.autoencoder]
    if learner.distillation:
        frozen.append(learner.distillation.decoder.student)
        learner.distillation.optimiser.zero_grad()  # of the teaching before
    before = [parameter.clone() for module in frozen for parameter in module.parameters()]
    learner.step(batch)
    for level in ("convds0", "convds1", "convds2"):
        gradient = getattr(learner.model, level)[2].weight.grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0
    after = [parameter for module in frozen for parameter in module.parameters()]
    assert all(parameter.grad is None for parameter in after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert load_tokenizer(str(kl_folder)).digest == fresh.digest


def test_only_the_levels_asked_for_take_part_in_the_dice_loss(
    small_store: str, fresh: Tokenizer
) -> None:
    settings = replace(QUICK, loss="seg", seg_levels="out")
    learner, batch = learner_and_batch(small_store, fresh, settings)
    learner.step(batch)
    assert learner.model.convds0[2].weight.grad is not None
    for left_out in (learner.model.convds1, learner.model.convds2):
        assert left_out[2].weight.grad is None


def test_every_nth_step_has_a_dice_loss(small_store: str, fresh: Tokenizer) -> None:
    learner, batch = learner_and_batch(small_store, fresh, replace(QUICK, seg_every=3))
    have = ["seg" in learner.step(batch) for _ in range(7)]
    assert have == [False, False, True, False, False, True, False]


@pytest.mark.parametrize(
    ("change", "weight"),
    [
        ({}, 1),
        ({"seg_every": 3}, 3),
        ({"seg_levels": "out"}, 3),
        ({"seg_levels": "out,level1"}, 1.5),
    ],
    ids=str,
)
def test_the_dice_term_weighs_as_much_however_rarely_it_is_taken(
    change: dict[str, Any], weight: float, small_store: str, fresh: Tokenizer
) -> None:
    settings = replace(QUICK, **change)
    _, batch = learner_and_batch(small_store, fresh, QUICK)
    decoder = MaskDecoder(fresh)
    # Levels all alike, so that each has the same part in the sum.
    levels = {level: batch.z_mask.clone().requires_grad_() for level in LEVELS}
    part = loss_of(settings, decoder)(levels, batch, step=settings.seg_every)["seg"]
    part.backward()
    _, of_one = seg_gradient(decoder, batch.z_mask[None], batch.mask)
    gradient = levels["out"].grad
    assert gradient is not None
    assert float(of_one.abs().max()) > 0
    torch.testing.assert_close(gradient, weight * of_one[0], rtol=1e-4, atol=1e-9)
    assert sum(level.grad is not None for level in levels.values()) == len(settings.dice_levels)


def test_the_student_learns_from_the_frozen_decoder_every_so_many_steps(
    small_store: str, fresh: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmm.step, "LEARN_EVERY", 2)
    settings = replace(QUICK, seg_decoder="student")
    learner, batch = learner_and_batch(small_store, fresh, settings)
    assert learner.distillation is not None
    weight = learner.distillation.decoder.student.stem.weight
    learner.teacher.calls = 0
    calls, weights = [], []
    for _ in range(4):
        learner.step(batch)
        calls.append(learner.teacher.calls)
        weights.append(weight.detach().clone())
    # Two samples of the batch are decoded, by one call, at the second and fourth step.
    assert calls == [0, 1, 1, 2]
    assert [torch.equal(weights[i], weights[i + 1]) for i in range(3)] == [False, True, False]


def test_steps_on_empty_masks_take_false_alarms_away(small_store: str, fresh: Tokenizer) -> None:
    settings = replace(QUICK, loss="seg", seg_decoder="student")
    learner, batch = learner_and_batch(small_store, fresh, settings)
    assert learner.distillation is not None
    assert batch.mask is not None
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    student = learner.distillation.decoder

    def false_alarms() -> float:
        with torch.no_grad():
            return float(student(learner.model(batch.z_image)["out"]).sum())

    with torch.no_grad():
        student.student.head[1].bias.add_(2)  # it sees a lesion nearly everywhere
    before = false_alarms()
    for _ in range(60):
        learner.step(empty)
    assert before > 0.5 * batch.mask.numel()
    assert false_alarms() < 0.96 * before


def test_the_latent_loss_takes_every_supervised_level(small_store: str, fresh: Tokenizer) -> None:
    learner, batch = learner_and_batch(small_store, fresh, replace(QUICK, loss="lm"))
    with torch.no_grad():
        z_mask_hat = learner.model(batch.z_image)
    expected = sum(float((z_mask_hat[level] - batch.z_mask).square().mean()) for level in LEVELS)
    assert float(learner.step(batch)["lm"]) == pytest.approx(expected, rel=1e-5)
