"""train --init: weights of another run to start from, and all that it had seen counted as seen."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small
import torch
from click.testing import CliRunner, Result

from cli.main import main
from lmm.run import Run, open_run
from lmm.run.checkpoint import read_checkpoint
from lmm.settings import TrainSettings
from lmm.train import new_learner, train
from pipeline.encode import encode
from pipeline.store import open_store
from pipeline.tokenizer import load_tokenizer, load_tokenizer_of

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"loss": "lm", "epochs": 1, "batch_size": 1, "width": 16}
OPTIONS = ("--loss", "lm", "--epochs", 1, "--batch-size", 1, "--width", 16)
ELSEWHERE = ("benign (61)", "benign (62)", "malignant (61)", "malignant (62)")


def gms_lmm(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--device", "cpu"])


def begin(store: str, out: Path, *words: object) -> Result:
    return gms_lmm("train", "--latents", store, "--out", out, *OPTIONS, *words, "--json")


@pytest.fixture(scope="module")
def elsewhere(kl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of other images than those of the small one."""
    home = tmp_path_factory.mktemp("elsewhere")
    url = str(home / "elsewhere.zarr")
    manifest = small.ingest(small.write_busi(home / "raw", ELSEWHERE))
    encode(manifest, url, load_tokenizer(str(kl_folder)), views=1, size=small.SIZE_PX)
    return url


@pytest.fixture(scope="module")
def trained(elsewhere: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("trained") / "first"
    train(open_store(elsewhere), path, TrainSettings(**QUICK, seed=1, select_on="none"), device=CPU)
    return open_run(path)


@pytest.fixture
def origin(trained: Run, tmp_path: Path) -> Run:
    """A run on other images, of the test's own."""
    return open_run(Path(shutil.copytree(trained.path, tmp_path / "first")))


def test_training_starts_from_the_weights_of_the_other_run(origin: Run, small_store: str) -> None:
    store, settings = open_store(small_store), TrainSettings(**QUICK)
    tokenizer = load_tokenizer_of(store.tokenizer, CPU)
    learner = new_learner(store, settings, tokenizer, origin)
    theirs, _ = read_checkpoint(origin.path / "best.safetensors")
    ours = dict(learner.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_weights_and_what_they_had_seen_are_the_run_s(
    origin: Run, small_store: str, elsewhere: str, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    # Steps so small that what is trained is what it started from.
    result = begin(small_store, second, "--init", origin.path, "--lr", 1e-12)
    assert result.exit_code == 0, result.output
    ours, _ = read_checkpoint(second / "best.safetensors")
    theirs, _ = read_checkpoint(origin.path / "best.safetensors")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in theirs)
    seen = {
        image
        for url in (small_store, elsewhere)
        for image in open_store(url).samples.filter(split="train")["image_sha256"]
    }
    assert set(pl.read_parquet(second / "lineage.parquet")["image_sha256"]) >= seen
    there = gms_lmm(*("evaluate", "--run", second, "--latents", elsewhere, "--split", "train"))
    assert there.exit_code == 4
    assert "trained on: " in there.stderr
    assert gms_lmm("evaluate", "--run", second, "--latents", elsewhere).exit_code == 0


def test_a_run_that_starts_otherwise_is_another_run(
    origin: Run, small_store: str, tmp_path: Path
) -> None:
    out = tmp_path / "second"
    assert begin(small_store, out, "--init", origin.path).exit_code == 0
    done = (out / "summary.json").read_bytes()
    assert begin(small_store, out, "--init", origin.path).exit_code == 0  # nothing left to do
    moved = Path(shutil.copytree(origin.path, tmp_path / "moved"))
    assert begin(small_store, out, "--init", moved).exit_code == 0  # the same weights
    weights = moved / "best.safetensors"
    weights.write_bytes((out / "best.safetensors").read_bytes())
    for words in ((), ("--init", moved)):
        refused = begin(small_store, out, *words)
        assert refused.exit_code == 4
        assert "is a run with other weights to start from" in refused.stderr
    assert (out / "summary.json").read_bytes() == done


def test_refit_starts_where_its_run_did(origin: Run, small_store: str, tmp_path: Path) -> None:
    out = tmp_path / "second"
    assert begin(small_store, out, "--init", origin.path).exit_code == 0
    refit = ("train", "--latents", small_store, "--refit", out)
    assert "takes no --init" in gms_lmm(*refit, "--init", origin.path).output
    description = json.loads((out / "run.json").read_text())
    description["settings"]["select_on"] = "val"
    summary = json.loads((out / "summary.json").read_text()) | {"select_on": "val"}
    (out / "run.json").write_text(json.dumps(description))
    (out / "summary.json").write_text(json.dumps(summary))
    assert gms_lmm(*refit).exit_code == 0
    again = json.loads((tmp_path / "second-refit" / "run.json").read_text())
    assert again["origin"] == description["origin"]
    weights = origin.path / "best.safetensors"
    weights.write_bytes((out / "best.safetensors").read_bytes())
    refused = gms_lmm(*refit, "--out", tmp_path / "third")
    assert refused.exit_code == 4
    assert "started from weights of" in refused.stderr


def test_the_page_and_the_name_say_what_it_started_from(
    origin: Run, small_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = gms_lmm("train", "--latents", small_store, *OPTIONS, "--init", origin.path, "--json")
    assert result.exit_code == 0, result.output
    run = open_run(Path(json.loads(result.stdout)["run"]))
    assert run.path.name == "small-lm-from-first-s0"
    assert gms_lmm("evaluate", "--run", run.path, "--latents", small_store).exit_code == 0
    report = CliRunner().invoke(main, ["report", str(run.path), "-o", str(tmp_path / "page.html")])
    assert report.exit_code == 0, report.output
    page = (tmp_path / "page.html").read_text()
    assert f"--init {origin.path}" in page
    assert origin.weights_digest in page


def test_what_cannot_be_started_from_is_refused(
    origin: Run, small_store: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    wide = begin(small_store, out, "--width", 32, "--init", origin.path)
    assert wide.exit_code == 2
    assert (
        "4 latent channels and width 16, the one to be trained 4 latent channels and width 32"
        in (wide.stderr)
    )
    assert "--width 16" in wide.stderr
    assert begin(small_store, out, "--init", tmp_path / "none").exit_code == 4
    file = origin.path / "run.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps({**description, "store": None, "settings": None}))
    imported = begin(small_store, out, "--init", origin.path)
    assert imported.exit_code == 4
    assert "is not known" in imported.stderr
    file.write_text(
        json.dumps({**description, "model": {**description["model"], "class": "Residual"}})
    )
    assert "no latent mapping model" in begin(small_store, out, "--init", origin.path).stderr
    file.write_text(json.dumps(description))
    (origin.path / "summary.json").unlink()
    assert "is not finished" in begin(small_store, out, "--init", origin.path).stderr
    assert not out.exists()
