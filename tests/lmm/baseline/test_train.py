"""Runs of baselines: resumed to the same bits, scored and shown as any run, and honest."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import peers
import polars as pl
import pytest
import small
import torch
from click.testing import CliRunner
from PIL import Image

import lmm.baseline.budget
import lmm.predict
from cli.main import main
from lmm.baseline.budget import seconds_an_epoch, settle_epochs
from lmm.baseline.pixels import ManifestImages, open_manifest
from lmm.baseline.settings import NETWORKS, BaselineSettings
from lmm.baseline.train import describe, start_baseline, train_baseline
from lmm.evaluate import Wanted, evaluate, find_scored, write_evaluation, write_masks
from lmm.predict.files import predict_files
from lmm.report import build_report
from lmm.report.tables import build_rows, format_table
from lmm.run import Run, open_run
from lmm.run.checkpoint import read_checkpoint
from pipeline.errors import ArtefactError, UsageError
from pipeline.store import open_store

CPU = torch.device("cpu")
QUICK = BaselineSettings(
    model="attention-unet", size=small.SIZE_PX, views=2, epochs=3, batch_size=1, val_every=1
)


class InterruptedByTestError(Exception):
    pass


def assert_same(a: Path, b: Path) -> None:
    for which in ("last", "best"):
        left, right = (read_checkpoint(run / f"{which}.safetensors")[0] for run in (a, b))
        assert left.keys() == right.keys()
        for name in left:
            assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_a_run_stopped_at_any_step_resumes_to_the_uninterrupted_weights(
    steps: int, small_manifest: ManifestImages, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == steps:
            raise InterruptedByTestError

    whole = train_baseline(small_manifest, tmp_path / "whole", QUICK, device=CPU)
    assert whole["steps"] == describe(small_manifest, QUICK)["steps"] == 9
    with pytest.raises(InterruptedByTestError):
        train_baseline(small_manifest, tmp_path / "run", QUICK, device=CPU, progress=stop)
    with pytest.raises(ArtefactError, match="not finished"):
        train_baseline(small_manifest, tmp_path / "run", QUICK, device=CPU)
    again = train_baseline(small_manifest, tmp_path / "run", QUICK, device=CPU, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")
    assert again["select_dsc"] == whole["select_dsc"]


def test_a_killed_process_resumes_to_the_uninterrupted_weights(
    small_manifest: ManifestImages, tmp_path: Path
) -> None:
    settings = replace(QUICK, views=8, epochs=30)
    words = ["baseline", small_manifest.url, "--out", str(tmp_path / "run"), "--size", "64"]
    words += ["--model", QUICK.model, "--epochs", "30", "--batch-size", "1", "--val-every", "1"]
    code = "import peers; from lmm.baseline.settings import NETWORKS; NETWORKS.update(peers.SMALL);"
    code += "from cli.main import main; main()"
    home = Path(peers.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--precision", "fp32"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{home / 'tests' / 'support'}"},
    )
    while not (tmp_path / "run" / "last.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train_baseline(small_manifest, tmp_path / "run", settings, device=CPU, resume=True)
    train_baseline(small_manifest, tmp_path / "whole", settings, device=CPU)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_budget_of_seconds_becomes_a_number_of_epochs_that_the_run_keeps(
    small_manifest: ManifestImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settled(settings: BaselineSettings) -> int:
        return settle_epochs(small_manifest, tmp_path / "run", settings, CPU).epochs

    wanted = replace(QUICK, seconds=10)
    assert seconds_an_epoch(small_manifest, wanted, CPU) > 0
    assert settled(QUICK) == QUICK.epochs
    monkeypatch.setattr(lmm.baseline.budget, "seconds_an_epoch", lambda *_: 3.0)
    assert settled(wanted) == 3
    assert settled(replace(wanted, seconds=1)) == 1
    start_baseline(tmp_path / "run", small_manifest, replace(wanted, epochs=3))
    monkeypatch.setattr(lmm.baseline.budget, "seconds_an_epoch", lambda *_: 1.0)
    assert settled(wanted) == 3
    assert settled(replace(wanted, lr=1.0)) == 10


def test_a_run_says_what_it_is_and_what_it_has_seen(
    small_peer: Run, small_manifest: ManifestImages
) -> None:
    said = small_peer.description
    assert said["model"]["class"] == "monai.networks.nets.BasicUNet"
    assert said["settings"]["lr"] == NETWORKS["unet"].lr
    assert said["manifest"]["digest"] == small_manifest.manifest.digest
    assert {"torch", "monai"} <= said["software"].keys()
    lineage = small_peer.lineage()
    assert lineage is not None
    split = dict(small_manifest.samples.select("sample_id", "split").rows())
    roles = {"train": "train", "select": "val"}
    assert all(split[name] == roles[role] for name, role in lineage["sample_id", "role"].rows())
    log = [json.loads(line) for line in (small_peer.path / "log.jsonl").read_text().splitlines()]
    assert all(line["loss_total"] == line["loss_dice"] + line["loss_ce"] for line in log)
    assert small_peer.summary()["decoder_calls"] == 0
    with pytest.raises(ArtefactError, match="weights of a monai"):
        small_peer.model()


def test_store_and_manifest_score_the_same_images_as_a_run_on_the_store(
    small_peer: Run, small_run: Run, small_store: str, small_manifest: ManifestImages
) -> None:
    store = open_store(small_store)
    ours = evaluate(small_peer, store, "test", CPU)
    by_manifest = evaluate(small_peer, small_manifest, "test", CPU)
    theirs = evaluate(small_run, store, "test", CPU)
    assert by_manifest.per_image.equals(ours.per_image)
    assert ours.summary["images_digest"] == theirs.summary["images_digest"]
    assert ours.summary.keys() == theirs.summary.keys()
    assert by_manifest.summary.keys() - ours.summary.keys() == {"manifest"}
    assert ours.per_image.columns == theirs.per_image.columns
    assert (ours.name, by_manifest.name) == ("small-test", "small-test")
    assert ours.summary["seen"] == {"train": 0, "select": 0}
    assert find_scored(small_peer, store, "test").digest == ours.summary["images_digest"]


def test_it_says_how_sure_it_is_and_scores_the_same_when_asked(
    small_peer: Run, small_manifest: ManifestImages, tmp_path: Path
) -> None:
    plain = evaluate(small_peer, small_manifest, "test", CPU)
    asked = evaluate(small_peer, small_manifest, "test", CPU, Wanted(sure=True, grey=True))
    assert asked.per_image.drop("confidence").equals(plain.per_image)
    assert asked.summary.keys() - plain.summary.keys() == {"confidence"}
    write_masks(asked, tmp_path)
    for name, mask, sure in zip(
        asked.per_image["sample_id"], asked.masks, asked.per_image["confidence"], strict=True
    ):
        grey = np.array(Image.open(tmp_path / "grey" / f"{name}.png")) / 255
        expected = 2 * grey[mask].sum() / (grey.sum() + mask.sum())
        assert sure == pytest.approx(expected, abs=0.01)


def test_images_that_it_has_seen_are_refused(small_peer: Run, small_store: str) -> None:
    store = open_store(small_store)
    with pytest.raises(ArtefactError, match="3 trained on"):
        evaluate(small_peer, store, "train", CPU)
    seen = evaluate(small_peer, store, "train", CPU, allow_seen=True)
    assert seen.summary["seen"] == {"train": 3, "select": 0}
    assert seen.name == "small-train-seen"


def test_what_it_does_not_have_is_not_asked_of_it(
    small_peer: Run, small_store: str, small_manifest: ManifestImages
) -> None:
    for wanted in (Wanted(ceiling=True), Wanted(student=True)):
        with pytest.raises(UsageError, match="neither a tokenizer's ceiling nor a student"):
            evaluate(small_peer, open_store(small_store), "test", CPU, wanted)
    with pytest.raises(ArtefactError, match=r"was trained at 64 px, .* is at 32 px"):
        evaluate(small_peer, open_manifest(small_manifest.url, 32), "test", CPU)
    with pytest.raises(UsageError, match="a baseline, which has no tokenizer"):
        lmm.predict.load(small_peer, tokenizer="tiny-vae")


def test_predict_gives_the_masks_of_evaluate_pixel_for_pixel(
    small_peer: Run, small_manifest: ManifestImages, tmp_path: Path
) -> None:
    evaluation = evaluate(small_peer, small_manifest, "test", CPU, Wanted(native=True))
    write_masks(evaluation, tmp_path / "evaluated")
    rows = small_manifest.samples.filter(split="test").to_dicts()
    paths = [small_manifest.manifest.image_path(row) for row in rows]
    model = lmm.predict.load(small_peer, device="cpu")
    # One by one, and with others among them.
    more = [small_manifest.manifest.image_path(row) for row in small_manifest.samples.to_dicts()]
    for folder, images in (("alone", paths[:1]), ("all", more)):
        predict_files(model, images, tmp_path / folder)
        for path in paths if folder == "all" else images:
            name = f"{path.stem}.png"
            assert (tmp_path / folder / name).read_bytes() == (
                tmp_path / "evaluated" / name
            ).read_bytes()
    assert 0 < np.mean([mask.mean() for mask in evaluation.masks]) < 1


@pytest.fixture
def scored(
    small_peer: Run, small_run: Run, small_store: str, monkeypatch: pytest.MonkeyPatch
) -> list[Run]:
    """A baseline and a run of latents, scored on the test images of one store."""
    for run in (small_peer, small_run):
        evaluation = evaluate(run, open_store(small_store), "test", CPU)
        write_evaluation(evaluation, run.path / "evaluate")
    return [small_run, small_peer]


def test_the_page_shows_it_beside_a_model_of_latents(scored: list[Run]) -> None:
    page, numbers = build_report(scored, "test")
    assert [one["tokenizer"] is None for one in numbers] == [False, True]
    for run in scored:
        summary = run.summary()
        costs = f'<td class="n wide">{summary["parameters"]:,}</td><td class="n wide">'
        assert f"{costs}{summary['seconds']:,.0f}</td>" in page
    assert "unet, loss dice + ce" in page
    assert "unet, monai.networks.nets.BasicUNet" in page
    alone = build_report(scored[1:], "test")[0]
    assert "Networks in pixels" in alone
    assert "adds it" not in alone


def test_the_page_s_commands_make_it_again(scored: list[Run]) -> None:
    page, _ = build_report(scored[1:], "test")
    block = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert block
    commands = [shlex.split(line) for line in block[1].strip().splitlines()]
    assert [words[1] for words in commands] == ["baseline", "evaluate"]
    results = [CliRunner().invoke(main, [*words[1:], "--json"]) for words in commands]
    assert [result.exit_code for result in results] == [0, 0]
    assert "already complete" in results[0].stderr
    file = next((scored[1].path / "evaluate").glob("*-test.json"))
    assert json.loads(results[1].stdout)["dsc"] == json.loads(file.read_text())["dsc"]


def test_a_table_has_models_and_what_they_cost_side_by_side(scored: list[Run]) -> None:
    rows = build_rows(scored, "test")
    text = format_table(rows, "csv")
    table = pl.read_csv(text.encode())
    assert table.columns[:4] == ["data set", "tokenizer", "loss", "model"]
    assert table["model"].to_list() == ["LMM", "unet"]
    assert table["tokenizer"].to_list()[1] == "–"
    costs = [(one["parameters"], round(one["seconds"])) for one in map(Run.summary, scored)]
    assert table.select("parameters", "training_s").rows() == costs
    # Settings that only one of the models has tell nothing apart.
    assert not {"seg_decoder", "width", "view_seed"} & {*table.columns}
    assert "model" not in format_table(rows[:1], "csv")


def test_a_page_of_scores_by_manifest_needs_no_store(
    small_peer: Run, small_manifest: ManifestImages, tmp_path: Path
) -> None:
    evaluation = evaluate(small_peer, small_manifest, "test", CPU)
    (tmp_path / "run").mkdir()
    for file in small_peer.path.iterdir():
        if file.is_file():
            (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    run = open_run(tmp_path / "run")
    with pytest.raises(ArtefactError, match="has not been scored on test") as error:
        build_report([run], "test")
    assert f"--manifest {small_manifest.url}" in error.value.fix
    write_evaluation(evaluation, run.path / "evaluate")
    page, numbers = build_report([run], "test")
    assert numbers[0]["dsc"] == evaluation.summary["dsc"]
    assert f"gms-lmm evaluate --run {run.path} --manifest {small_manifest.url}" in page
