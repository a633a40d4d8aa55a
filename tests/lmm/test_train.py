"""Training: what a step computes, what an epoch reads, what a killed run resumes to."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import lmm.model
import lmm.step
from lmm.batches import open_batches
from lmm.latents import load_latents
from lmm.loop import validate
from lmm.run import open_run
from lmm.run.checkpoint import load_weights, read_checkpoint
from lmm.settings import TrainSettings
from lmm.student.network import MaskStudent
from lmm.train import describe, new_learner, train
from pipeline.device import require_compiler
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import open_store
from pipeline.tokenizer import load_tokenizer, load_tokenizer_of

CPU = torch.device("cpu")
QUICK = TrainSettings(loss="lm", epochs=4, batch_size=1, width=16, val_every=2)


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return read_checkpoint(run / f"{which}.safetensors")[0]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def finished(small_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(open_store(small_store), run, QUICK, device=CPU)
    return run


def test_a_run_holds_its_settings_log_weights_and_summary(finished: Path) -> None:
    run = open_run(finished)
    assert run.description["settings"]["loss"] == "lm"
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3, 4]
    assert [line["epoch"] for line in log if "val_dsc" in line] == [2, 4]
    summary = run.summary()
    assert summary["epochs"] == 4
    assert summary["best_epoch"] in (2, 4)
    scores = {line["epoch"]: line["val_dsc"] for line in log if "val_dsc" in line}
    assert summary["val_dsc"] == scores[summary["best_epoch"]]


def test_the_latent_loss_never_calls_the_decoder_in_training(finished: Path) -> None:
    summary = open_run(finished).summary()
    assert summary["decoder_calls"] == 0
    assert summary["val_decoder_calls"] > 0


def test_the_loss_goes_down(finished: Path) -> None:
    losses = [json.loads(x)["loss_lm"] for x in (finished / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    finished: Path, small_store: str, tmp_path: Path
) -> None:
    store = open_store(small_store)
    train(store, tmp_path / "same", QUICK, device=CPU)
    train(store, tmp_path / "other", replace(QUICK, seed=1), device=CPU)
    assert_same(weights(finished), weights(tmp_path / "same"))
    name = "model.conv0_4.resblock.conv1.2.weight"
    assert not torch.equal(weights(finished)[name], weights(tmp_path / "other")[name])


class InterruptedByTestError(Exception):
    pass


def stop_and_resume(steps: int, store: str, run: Path, settings: TrainSettings) -> None:
    def stop(done: int, total: int) -> None:
        if done == steps:
            raise InterruptedByTestError

    with pytest.raises(InterruptedByTestError):
        train(open_store(store), run, settings, device=CPU, progress=stop)
    train(open_store(store), run, settings, device=CPU, resume=True)


TIMES = ("seconds", "steps_per_s", "data_wait")


def untimed(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in TIMES} for line in lines]


@pytest.mark.parametrize("steps", [1, 4, 6, 11])
def test_a_run_stopped_at_any_step_resumes_to_the_uninterrupted_weights(
    steps: int, finished: Path, small_store: str, tmp_path: Path
) -> None:
    stop_and_resume(steps, small_store, tmp_path / "run", QUICK)
    for which in ("last", "best"):
        assert_same(weights(finished, which), weights(tmp_path / "run", which))
    assert untimed(finished) == untimed(tmp_path / "run")


@pytest.mark.parametrize(
    "mode",
    [
        {"loss": "compound", "seg_decoder": "student"},
        {"loss": "compound", "seg_decoder": "student", "seg_every": 2},
        {"loss": "compound", "seg_decoder": "full", "seg_levels": "out,level1"},
        {"loss": "seg", "seg_decoder": "full"},
        {"loss": "lm", "residency": "stream", "posterior": "gms"},
        {"loss": "lm", "deterministic": True},
        {"loss": "lm", "select_on": "none"},
    ],
    ids=str,
)
def test_every_way_of_training_resumes_to_the_uninterrupted_weights(
    mode: dict[str, Any], small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmm.step, "LEARN_EVERY", 2)
    settings = replace(QUICK, epochs=3, **mode)
    train(open_store(small_store), tmp_path / "whole", settings, device=CPU)
    stop_and_resume(7, small_store, tmp_path / "run", settings)
    for which in ("last", "best"):
        assert_same(weights(tmp_path / "whole", which), weights(tmp_path / "run", which))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "run")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_a_compiled_run_trains_as_an_eager_one_and_resumes_to_its_weights(
    small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        require_compiler(CPU)
    except UsageError as error:
        pytest.skip(str(error))
    # A whole model takes a minute to compile.
    monkeypatch.setattr(lmm.model, "Block", partial(torch.nn.Conv2d, kernel_size=3, padding=1))
    eager = replace(QUICK, loss="seg", seg_levels="out", epochs=3)
    compiled = replace(eager, compile=True)
    train(open_store(small_store), tmp_path / "eager", eager, device=CPU)
    train(open_store(small_store), tmp_path / "whole", compiled, device=CPU)
    stop_and_resume(4, small_store, tmp_path / "run", compiled)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "run")
    first, second = (untimed(tmp_path / name)[0] for name in ("eager", "whole"))
    assert first["loss_seg"] == pytest.approx(second["loss_seg"], rel=1e-4)
    # Sums are taken in another order, but what the loss does not see is left alone as ever: AdamW
    # would shrink it, were its gradient zero instead of none.
    for unseen in ("model.convds3.2.weight", "model.convds1.2.weight"):
        assert torch.equal(weights(tmp_path / "eager")[unseen], weights(tmp_path / "run")[unseen])


def test_a_run_with_a_student_keeps_it_and_says_how_well_it_agrees(
    small_store: str, tmp_path: Path
) -> None:
    settings = replace(QUICK, loss="compound", seg_decoder="student", epochs=2)
    summary = train(open_store(small_store), tmp_path / "run", settings, device=CPU)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert summary["student_agreement"] == last.get("student_agreement")
    student = MaskStudent(4, 8)
    load_weights(student, read_checkpoint(tmp_path / "run" / "student.safetensors")[0])


def test_a_line_of_the_log_says_speed_waiting_and_decoder_calls(finished: Path) -> None:
    line = json.loads((finished / "log.jsonl").read_text().splitlines()[0])
    assert line["steps_per_s"] > 0
    assert 0 <= line["data_wait"] < 1
    assert line["decoder_calls"] == 0


def test_training_leaves_the_tokenizer_as_it_was(small_store: str, tmp_path: Path) -> None:
    store = open_store(small_store)
    tokenizer = load_tokenizer_of(store.tokenizer, CPU)
    settings = replace(QUICK, loss="compound", seg_decoder="full")
    learner = new_learner(store, settings, tokenizer)
    for batch in open_batches(store, settings, CPU).epoch(1):
        learner.step(batch)
    validate(learner, load_latents(store, "val", views=1))
    state = tokenizer.autoencoder.state_dict()
    assert_same(dict(load_tokenizer(tokenizer.name).autoencoder.state_dict()), dict(state))


def test_deterministic_kernels_are_asked_for_only_while_training(
    small_store: str, tmp_path: Path
) -> None:
    asked = []

    def note(done: int, total: int) -> None:
        asked.append(torch.are_deterministic_algorithms_enabled())

    settings = replace(QUICK, epochs=1, deterministic=True)
    train(open_store(small_store), tmp_path / "run", settings, device=CPU, progress=note)
    assert all(asked)
    assert asked
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seg_levels": "out,level9"}, "--seg-levels level9 is not known"),
        ({"seg_decoder": "both"}, "--seg-decoder both is not known"),
        ({"residency": "disk"}, "--residency disk is not known"),
        ({"loss": "seg", "seg_every": 2}, "with no loss at all"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    change: dict[str, Any], says: str, small_store: str
) -> None:
    with pytest.raises(UsageError, match=says):
        describe(open_store(small_store), replace(QUICK, **change))


def test_a_killed_process_resumes_to_the_uninterrupted_weights(
    finished: Path, small_store: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from cli.main import main; main()", "train"]
    command += ["--latents", small_store, "--out", str(run), "--loss", "lm", "--epochs", "4"]
    command += ["--batch-size", "1", "--width", "16", "--val-every", "2", "--precision", "fp32"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(Path.cwd())}
    )
    while not (run / "last.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(open_store(small_store), run, QUICK, device=CPU, resume=True)
    assert_same(weights(finished), weights(run))


def test_a_finished_run_is_not_trained_again(finished: Path, small_store: str) -> None:
    before = (finished / "last.safetensors").stat().st_mtime_ns
    summary = train(open_store(small_store), finished, QUICK, device=CPU)
    assert summary == open_run(finished).summary()
    assert (finished / "last.safetensors").stat().st_mtime_ns == before


def test_a_run_with_other_settings_is_refused_by_the_setting_that_differs(
    finished: Path, small_store: str
) -> None:
    with pytest.raises(ArtefactError, match="another settings: lr differ"):
        train(open_store(small_store), finished, replace(QUICK, lr=1e-3), device=CPU)


def test_overwrite_replaces_a_run_of_other_settings_and_resumes_one_of_the_same(
    small_store: str, tmp_path: Path
) -> None:
    store, run = open_store(small_store), tmp_path / "run"
    train(store, run, replace(QUICK, epochs=1), device=CPU)
    (run / "note.txt").write_text("kept")
    train(store, run, replace(QUICK, epochs=1), device=CPU, resume=True, overwrite=True)
    assert (run / "note.txt").exists()
    train(store, run, replace(QUICK, epochs=2), device=CPU, resume=True, overwrite=True)
    assert not (run / "note.txt").exists()
    assert open_run(run).summary()["epochs"] == 2


def test_a_run_on_another_store_is_refused(finished: Path, store_copy: Path) -> None:
    receipt = json.loads((store_copy / "receipt.json").read_text())
    receipt["arrays"]["mask"] = "0" * 64
    (store_copy / "receipt.json").write_text(json.dumps(receipt))
    with pytest.raises(ArtefactError, match="another store: receipt differ"):
        train(open_store(str(store_copy)), finished, QUICK, device=CPU)


def test_an_unfinished_run_asks_for_resume(small_store: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise InterruptedByTestError

    store = open_store(small_store)
    with pytest.raises(InterruptedByTestError):
        train(store, tmp_path / "run", QUICK, device=CPU, progress=stop)
    with pytest.raises(ArtefactError, match="--resume"):
        train(store, tmp_path / "run", QUICK, device=CPU)


def test_a_dry_run_counts_parameters_steps_and_bytes_by_hand(small_store: str) -> None:
    store = open_store(small_store)
    samples = store.samples["split"].to_list().count("train")
    plan = describe(store, replace(QUICK, width=32))
    assert plan["parameters"] == 1_564_976
    assert plan["steps"] == 4 * samples
    # three views; mean of the image, mean of the mask; float16 (4, 8, 8)
    assert plan["bytes_in_memory"] == samples * 3 * 2 * (4 * 8 * 8) * 2
    noisy = describe(store, replace(QUICK, posterior="sample"))
    assert noisy["bytes_in_memory"] == samples * 3 * 3 * (4 * 8 * 8) * 2


def test_a_posterior_that_the_tokenizer_does_not_have_is_refused(small_store: str) -> None:
    store = open_store(small_store)
    store.attributes["tokenizer"]["deterministic"] = True
    with pytest.raises(UsageError, match="deterministic"):
        describe(store, replace(QUICK, posterior="gms"))


@pytest.mark.parametrize("posterior", ["sample", "gms"])
def test_noise_changes_training_and_stays_reproducible(
    posterior: str, small_store: str, tmp_path: Path
) -> None:
    settings = replace(QUICK, posterior=posterior, epochs=2)
    store = open_store(small_store)
    train(store, tmp_path / "a", settings, device=CPU)
    train(store, tmp_path / "b", settings, device=CPU)
    train(store, tmp_path / "mean", replace(settings, posterior="mean"), device=CPU)
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    name = "model.input_blocks.weight"
    assert not torch.equal(weights(tmp_path / "a")[name], weights(tmp_path / "mean")[name])
