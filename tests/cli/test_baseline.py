"""gms-lmm baseline as it is called: what is printed, what is written, what is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import main
from lmm.baseline.pixels import ManifestImages
from lmm.run import Run

WORDS = ["--size", "64", "--epochs", "1", "--batch-size", "2", "--device", "cpu"]


def gms_lmm(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_network_is_planned_trained_scored_and_predicts(
    small_manifest: ManifestImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["baseline", small_manifest.url, "--model", "segresnet", *WORDS, "--views", "fresh"]
    plan = json.loads(gms_lmm(*words, "--dry-run", "--json").stdout)
    assert plan["run"] == "runs/small-segresnet-s0"
    assert (plan["samples"], plan["steps"], plan["views"]) == (3, 1, "fresh")
    assert plan["bytes_in_memory"] == 3 * 64 * 64 * (3 + 1)
    assert not Path("runs").exists()
    trained = gms_lmm(*words, "--json")
    assert trained.stderr == ""
    summary = json.loads(trained.stdout)
    assert (summary["run"], summary["steps"]) == (plan["run"], plan["steps"])
    assert summary["parameters"] == plan["parameters"]
    again = gms_lmm(*words, "--json")
    assert json.loads(again.stdout) == summary
    assert "already complete" in again.stderr
    words = ["evaluate", "--run", plan["run"], "--manifest", small_manifest.url, "--json"]
    scores = json.loads(gms_lmm(*words).stdout)
    assert (scores["split"], scores["tokenizer"]) == ("test", None)
    rows = small_manifest.samples.filter(split="test").to_dicts()
    image = small_manifest.manifest.image_path(rows[0])
    predicted = gms_lmm("predict", "--run", plan["run"], image, "-o", "masks", "--json")
    assert json.loads(predicted.stdout)["n"] == 1
    assert [path.stem for path in Path("masks").iterdir()] == [image.stem]


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (["baseline", "MANIFEST", "--model", "resnet"], 2, "'resnet' is not one of 'unet'"),
        (["baseline", "MANIFEST", "--size", "100"], 2, "--size 112"),
        (["baseline", "MANIFEST", "--views", "all"], 2, "neither 'fresh' nor a positive number"),
        (["baseline", "MANIFEST", "--fold", "1", *WORDS], 2, "there is no fold 1"),
        (["baseline", "nowhere.parquet"], 4, "nowhere.parquet: no such manifest"),
        (["baseline", "MANIFEST", "--out", "PEER", *WORDS], 4, "another settings"),
        (["baseline", "MANIFEST", "--out", "LMM", *WORDS], 4, "another settings"),
        (["evaluate", "--run", "PEER"], 2, "one of them"),
        (["evaluate", "--run", "PEER", "--latents", "s", "--manifest", "m"], 2, "one of them"),
        (["evaluate", "--run", "LMM", "--manifest", "MANIFEST"], 2, "maps latents"),
        (["predict", "--run", "PEER", "IMAGE", "--size", "32"], 2, "was trained at 64 px"),
        (["predict", "--run", "PEER", "IMAGE", "--average", "views"], 2, "in latents alone"),
        (["predict", "--run", "LMM", "--run", "PEER", "IMAGE"], 2, "in latents alone"),
        (
            ["evaluate", "--run", "PEER", "--manifest", "MANIFEST", "--average", "dihedral"],
            2,
            "in latents alone",
        ),
        (["evaluate", "--run", "PEER", "--run", "LMM", "--latents", "STORE"], 2, "in latents"),
        (["evaluate", "--run", "LMM", "--run", "PEER", "--latents", "STORE"], 2, "in latents"),
    ],
)
def test_a_mistake_has_its_exit_code(
    words: list[str],
    exit_code: int,
    says: str,
    small_manifest: ManifestImages,
    small_peer: Run,
    small_run: Run,
    small_store: str,
) -> None:
    row = small_manifest.samples.to_dicts()[0]
    meant: dict[str, object] = {"MANIFEST": small_manifest.url, "PEER": small_peer.path}
    meant |= {"LMM": small_run.path, "STORE": small_store}
    meant |= {"IMAGE": small_manifest.manifest.image_path(row)}
    result = gms_lmm(*[meant.get(word, word) for word in words])
    assert result.exit_code == exit_code, result.output
    assert says in result.stderr
    assert result.stdout == ""
