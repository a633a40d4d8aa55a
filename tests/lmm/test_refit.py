"""train --refit: train and val together, for the epochs that val chose; no image chooses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from cli.main import main
from lmm.evaluate import evaluate
from lmm.run import Run, open_run
from lmm.run.checkpoint import read_checkpoint
from lmm.settings import TrainSettings
from lmm.splits import rows_to_train_on
from lmm.train import train
from pipeline.errors import ArtefactError
from pipeline.store import open_store

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"loss": "lm", "epochs": 3, "batch_size": 1, "width": 16, "val_every": 1}


def gms_lmm(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def chosen(small_store: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("chosen") / "run"
    train(open_store(small_store), path, TrainSettings(**SHORT), device=CPU)
    # As if val had chosen the second of the three, whatever it did.
    summary = json.loads((path / "summary.json").read_text()) | {"best_epoch": 2}
    (path / "summary.json").write_text(json.dumps(summary))
    return open_run(path)


@pytest.fixture(scope="module")
def refit(chosen: Run, small_store: str) -> Run:
    result = gms_lmm("train", "--latents", small_store, "--refit", chosen.path, "--json")
    assert result.exit_code == 0, result.output
    return open_run(Path(json.loads(result.stdout)["run"]))


def test_it_trains_on_train_and_val_and_keeps_the_last_of_the_chosen_epochs(
    chosen: Run, refit: Run, small_store: str
) -> None:
    assert refit.path == chosen.path.with_name("run-refit")
    samples = open_store(small_store).samples
    held = {split: set(samples.filter(split=split)["sample_id"]) for split in ("train", "val")}
    assert all(held.values())
    settings = TrainSettings(**{**SHORT, "select_on": "none"})
    rows = rows_to_train_on(samples, settings)
    assert set(samples[rows]["sample_id"]) == held["train"] | held["val"]
    summary = refit.summary()
    assert (summary["epochs"], summary["best_epoch"]) == (2, 2)
    assert summary["steps"] == 2 * len(rows)
    assert (summary["select_on"], summary["select_dsc"], summary["val_dsc"]) == ("none", None, None)
    assert summary["val_decoder_calls"] == 0
    best, _ = read_checkpoint(refit.path / "best.safetensors")
    last, _ = read_checkpoint(refit.path / "last.safetensors")
    assert all(torch.equal(best[name], last[f"model.{name}"]) for name in best)


def test_val_counts_as_seen_and_test_does_not(refit: Run, small_store: str) -> None:
    store = open_store(small_store)
    assert evaluate(refit, store, "test", CPU).summary["seen"] == {"train": 0, "select": 0}
    with pytest.raises(ArtefactError, match=r"has seen images of the val split.*trained on") as no:
        evaluate(refit, store, "val", CPU)
    assert "held out test" in no.value.fix
    assert "val" not in no.value.fix.split("held out")[1].split(",")[0]


def test_a_page_says_that_no_image_chose(refit: Run, small_store: str, tmp_path: Path) -> None:
    assert gms_lmm("evaluate", "--run", refit.path, "--latents", small_store).exit_code == 0
    result = CliRunner().invoke(main, ["report", str(refit.path), "-o", str(tmp_path / "page")])
    assert result.exit_code == 0, result.output
    (page,) = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert "epoch 2 of 2 kept, chosen by no image" in " ".join(page.split())
    assert "DSC on none" not in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "9"], "takes no --epochs"),
        (["--select-on", "test"], "takes no --select-on"),
        (["--seed", "0"], "takes no --seed"),
    ],
)
def test_settings_are_those_of_the_run(
    chosen: Run, small_store: str, options: list[str], said: str
) -> None:
    result = gms_lmm("train", "--latents", small_store, "--refit", chosen.path, *options)
    assert result.exit_code == 2
    assert said in result.output


def test_a_run_that_val_did_not_choose_or_of_other_data_is_refused(
    chosen: Run, refit: Run, small_store: str, tmp_path: Path
) -> None:
    words = ("train", "--latents", small_store, "--out", tmp_path / "out")
    again = gms_lmm(*words, "--refit", refit.path)
    assert again.exit_code == 4
    assert "no latent mapping model whose epoch val chose" in again.output
    description = json.loads((chosen.path / "run.json").read_text())
    description["store"]["receipt"]["arrays"]["mask"] = "0" * 64
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text(json.dumps(description))
    (other / "summary.json").write_bytes((chosen.path / "summary.json").read_bytes())
    refused = gms_lmm(*words, "--refit", other)
    assert refused.exit_code == 4
    assert "is other data" in refused.output
    assert not (tmp_path / "out").exists()
