"""The workflow, run by Snakemake itself on six images: what is done, and what is not done again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import SAMPLES, SIZE_PX, image_path, small_kl, write_busi

from pipeline.store import open_store

ROOT = Path(__file__).parents[1]
RULES = {"phantoms", "ingest", "encode_store", "train_run", "evaluate_run"}
SHARED = {*RULES, "encode_share"}  # with partitions
EDITED = "benign (2)"
STUDY = {"run_study"}
VIEWS, MORE_VIEWS = 2, 24
STORE, RUN = "results/six/latents.zarr", "results/six/runs/lm-s3"


def snakemake(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Snakemake at work in a folder; no gms-lmm is on the PATH, the workflow has to find it."""
    snakefile = str(ROOT / "Snakefile")
    where = ["--snakefile", snakefile, "--directory", str(folder), "--cores", "2"]
    return start("snakemake", *where, *arguments)


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "PATH": os.defpath},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, to be interrupted as a terminal does
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def ours(folder: Path) -> list[str]:
    return ["--configfile", str(folder / "config.yaml")]


def configure(folder: Path, **sections: dict[str, Any]) -> None:
    """Write a configuration for six images; JSON is YAML."""
    six = {"layout": "busi", "root": str(folder / "raw"), "split": "0.5/0.5", "val_fraction": 0.34}
    config: dict[str, dict[str, Any]] = {
        "datasets": {"six": six},
        "encode": {"tokenizer": "kl", "size": SIZE_PX, "views": VIEWS},
        "train": {"epochs": 2, "batch_size": 2, "seeds": [3]},
    }
    for name, settings in sections.items():
        config[name] = config.get(name, {}) | settings
    (folder / "config.yaml").write_text(json.dumps(config))


def rules_in(output: str) -> set[str]:
    """The rules that Snakemake ran, or would have run."""
    found = re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", output, re.M)
    return set(found) & (SHARED | STUDY)


@dataclass(frozen=True)
class Step:
    """One call of Snakemake, and what lay in the working directory after it."""

    code: int
    output: str
    encode_log: str
    keys: np.ndarray
    receipt: dict[str, Any] | None
    run: dict[str, Any]
    page: str

    @property
    def rules(self) -> set[str]:
        return rules_in(self.output)

    @property
    def cells(self) -> tuple[int, int]:
        """Cells encoded and cells reused, as gms-lmm encode reported them."""
        found = re.search(r"(\d+) cells encoded, (\d+) reused", self.encode_log)
        assert found, self.encode_log
        return int(found[1]), int(found[2])


def finish(folder: Path, process: subprocess.Popen[str]) -> Step:
    code, output = outcome(process)
    assert (folder / RUN / "run.json").exists(), output
    store = open_store(str(folder / STORE))
    return Step(
        code,
        output,
        (folder / "logs/six/encode.log").read_text(),
        np.array(store.array("key")[:]),
        store.receipt(),
        json.loads((folder / RUN / "run.json").read_text()),
        (folder / "results/six/report.html").read_text(),
    )


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    folder = tmp_path_factory.mktemp("workflow")
    write_busi(folder / "raw")
    small_kl().save_pretrained(folder / "kl")
    configure(folder)

    def run(*arguments: str) -> Step:
        return finish(folder, snakemake(folder, *arguments, *ours(folder)))

    steps = {"first": run(), "second": run()}
    configure(folder, train={"epochs": 3})
    steps["other epochs, planned"] = run("--dry-run")
    configure(folder)

    image = image_path(folder / "raw", EDITED)
    pixels = np.array(Image.open(image))
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(image)
    steps["edited"] = run("train")

    configure(folder, encode={"views": MORE_VIEWS, "eval_views": MORE_VIEWS})
    process = snakemake(folder, "encode", *ours(folder))
    # The key of a shard is written last, so this one has been encoded whole.
    while not (folder / STORE / f"key/c/{VIEWS}/0/0").exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    steps["interrupted"] = finish(folder, process)
    steps["resumed"] = run("encode")
    return steps


def test_first_run_ingests_encodes_trains_and_evaluates(steps: dict[str, Step]) -> None:
    first = steps["first"]
    assert first.code == 0, first.output
    assert first.cells == (VIEWS * len(SAMPLES), 0)
    assert first.rules == RULES - {"phantoms"}


def test_the_page_has_the_ceiling_of_the_store(steps: dict[str, Step]) -> None:
    assert "<dt>Ceiling</dt>" in steps["first"].page
    assert "image PSNR" in steps["first"].page


def test_data_sets_given_replace_the_default_ones(steps: dict[str, Step]) -> None:
    assert "dataset=six" in steps["first"].output
    assert "dataset=phantoms" not in steps["first"].output


def test_second_run_has_nothing_to_do(steps: dict[str, Step]) -> None:
    assert steps["second"].code == 0
    assert "Nothing to be done" in steps["second"].output
    assert not steps["second"].rules


def test_changed_epochs_train_and_evaluate_again_and_encode_nothing(steps: dict[str, Step]) -> None:
    assert steps["other epochs, planned"].rules == {"train_run", "evaluate_run"}


def test_an_edited_pixel_encodes_the_cells_of_its_image_alone(steps: dict[str, Step]) -> None:
    edited = steps["edited"]
    assert edited.code == 0, edited.output
    assert edited.cells == (VIEWS, VIEWS * (len(SAMPLES) - 1))
    changed = (edited.keys != steps["first"].keys).any(axis=2)
    assert changed.tolist() == [[name == EDITED for name in sorted(SAMPLES)]] * VIEWS


def test_a_changed_store_is_trained_on_anew_in_the_same_place(steps: dict[str, Step]) -> None:
    first, edited = steps["first"], steps["edited"]
    assert edited.receipt != first.receipt
    assert first.run["store"]["receipt"] == first.receipt
    assert edited.run["store"]["receipt"] == edited.receipt


def test_an_interrupted_encode_leaves_the_store_without_its_receipt(steps: dict[str, Step]) -> None:
    interrupted = steps["interrupted"]
    assert interrupted.code != 0
    assert interrupted.receipt is None
    written = interrupted.keys.any(axis=(1, 2)).sum()
    assert VIEWS < written < MORE_VIEWS


def test_the_next_encode_resumes_and_encodes_new_views_alone(steps: dict[str, Step]) -> None:
    interrupted, resumed = steps["interrupted"], steps["resumed"]
    assert resumed.code == 0, resumed.output
    assert resumed.receipt is not None
    there = int(interrupted.keys.any(axis=2).sum())
    assert resumed.cells == (MORE_VIEWS * len(SAMPLES) - there, there)
    assert (resumed.keys[:VIEWS] == steps["edited"].keys).all()


@pytest.mark.parametrize("section", ["encode", "six"])
def test_an_unknown_setting_is_an_error_that_names_it(section: str, tmp_path: Path) -> None:
    unknown = {"colour": "blue"}
    if section == "six":
        configure(tmp_path, datasets={"six": {"layout": "busi", "root": "raw", **unknown}})
    else:
        configure(tmp_path, **{section: unknown})
    code, output = outcome(snakemake(tmp_path, "--dry-run", *ours(tmp_path)))
    assert code != 0
    assert "'colour' was unexpected" in output
    assert "Traceback" not in output


def test_a_data_set_that_is_not_there_is_an_error_that_names_its_place(tmp_path: Path) -> None:
    configure(tmp_path)
    code, output = outcome(snakemake(tmp_path, "--dry-run", *ours(tmp_path)))
    assert code != 0
    assert "Missing input files" in output
    assert str(tmp_path / "raw") in output


def test_the_default_configuration_draws_phantoms_and_uses_every_rule(tmp_path: Path) -> None:
    code, output = outcome(snakemake(tmp_path, "--dry-run"))
    assert code == 0, output
    assert rules_in(output) == RULES


@pytest.mark.parametrize("named", ["width", "mine.yaml"])
def test_studies_that_the_configuration_names_are_run_on_every_store(
    named: str, tmp_path: Path
) -> None:
    write_busi(tmp_path / "raw")
    (tmp_path / "mine.yaml").write_text("{vary: {width: [16, 32]}, baseline: {width: 16}}")
    configure(tmp_path)
    config = json.loads((tmp_path / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(json.dumps(config | {"studies": [named]}))
    code, output = outcome(snakemake(tmp_path, "study", "--dry-run", *ours(tmp_path)))
    assert code == 0, output
    assert rules_in(output) == {"ingest", "encode_store"} | STUDY
    assert f"results/six/studies/{Path(named).stem}.json" in output


def test_the_slurm_profile_speaks_of_rules_that_exist() -> None:
    profile = (ROOT / "config/profiles/slurm/config.yaml").read_text()
    named = re.findall(r"^  (\w+):$", profile.partition("set-resources:")[2], re.M)
    assert named
    assert set(named) <= SHARED | STUDY


def test_snakemake_finds_nothing_to_lint(tmp_path: Path) -> None:
    code, output = outcome(snakemake(tmp_path, "--lint"))
    assert code == 0, output


def test_the_rules_are_formatted() -> None:
    files = [
        ROOT / "Snakefile",
        ROOT / "lmm/study/Snakefile",
        *(ROOT / "pipeline/rules").glob("*.smk"),
    ]
    code, output = outcome(start("snakefmt", "--check", *map(str, files)))
    assert code == 0, output
