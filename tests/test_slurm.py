"""The workflow by Snakemake's SLURM executor, in a queue whose jobs are processes of this test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import small
import torch
from encoded import run
from slurm import Slurm

from pipeline.manifest import write_manifest
from pipeline.store import open_store
from pipeline.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
VIEWS = 8
NAMES = tuple(f"benign ({i + 1})" for i in range(66))  # two blocks
STORE = "results/many/latents.zarr"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As each job has: threads decide the last bit of a latent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_share_whose_node_fails_is_requeued_and_the_receipt_is_that_of_one_process(
    tmp_path: Path, kl_folder: Path, tokenizer: Tokenizer
) -> None:
    manifest = small.ingest(small.write_busi(tmp_path / "raw", NAMES))
    place = tmp_path / "results/many/manifest.parquet"
    place.parent.mkdir(parents=True)
    write_manifest(manifest, place)
    settings = {"tokenizer": str(kl_folder), "size": small.SIZE_PX, "views": VIEWS, "partitions": 2}
    many = {"layout": "busi", "root": str(tmp_path / "raw")}
    config = {"datasets": {"many": many}, "encode": settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    slurm = Slurm(tmp_path / "slurm")

    snakemake = subprocess.Popen(
        [
            *(sys.executable, "-m", "snakemake", "encode", "--snakefile", ROOT / "Snakefile"),
            *("--profile", ROOT / "config/profiles/slurm", "--directory", tmp_path),
            *("--configfile", tmp_path / "config.json"),
            *("--set-threads", "encode_share=1", "encode_store=1"),
            *("--slurm-init-seconds-before-status-checks", "1"),
        ],
        env={**os.environ, **slurm.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # The key of a shard is written last, so one of eight has been encoded whole.
    while not (tmp_path / STORE / "key/c/0/0/0").exists() and snakemake.poll() is None:
        time.sleep(0.01)
    assert snakemake.poll() is None, snakemake.communicate()[0]
    (first,) = (job for job in slurm.jobs() if job["rule"].endswith("1-of-2"))
    os.killpg(first["processes"][0], signal.SIGKILL)
    output, _ = snakemake.communicate(timeout=300)
    assert snakemake.returncode == 0, output

    jobs = {job["rule"]: job for job in slurm.jobs()}
    assert {job["state"] for job in jobs.values()} == {"COMPLETED"}
    assert [len(job["processes"]) for job in jobs.values()] == [
        2 if job is jobs[first["rule"]] else 1 for job in jobs.values()
    ]
    assert sum("encode_share" in rule for rule in jobs) == 2
    assert all("--requeue" in job["words"] and "gpu" in str(job["words"]) for job in jobs.values())
    log = (tmp_path / "logs/many/encode-1-of-2.log").read_text()
    assert f"{33 * VIEWS} cells encoded" not in log
    assert "0 cells encoded" in (tmp_path / "logs/many/encode.log").read_text()
    assert not (tmp_path / "results/many/shares").exists() or not list(
        (tmp_path / "results/many/shares").iterdir()
    )
    run(manifest, str(tmp_path / "one.zarr"), tokenizer, views=VIEWS)
    one, shared = open_store(str(tmp_path / "one.zarr")), open_store(str(tmp_path / STORE))
    assert shared.receipt() == one.receipt() is not None
