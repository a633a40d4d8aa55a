"""The command line as a whole: help, one JSON object, exit codes, nothing on the wrong stream."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cli.main import COMMANDS, main
from cli.options import progress_bar
from pipeline.store import open_store

HELP_COMMANDS = [[name] for name in COMMANDS if name != "bench"]
HELP_COMMANDS += [["bench", name] for name in ("encode", "read", "train", "predict", "storage")]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def run_json(*words: str) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.mark.parametrize("words", HELP_COMMANDS, ids=" ".join)
def test_help_shows_one_sentence_and_an_example_that_names_the_command(words: list[str]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert f"gms-lmm {' '.join(words)}" in result.output.partition("Example:")[2]


@pytest.mark.parametrize("words", HELP_COMMANDS, ids=" ".join)
def test_every_option_is_explained(words: list[str]) -> None:
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    unexplained = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert unexplained == []


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from cli.main import main; main(['encode', '--help'], standalone_mode=False)"
    )
    code += "; sys.exit('torch' in sys.modules or 'polars' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_train_evaluate_and_dry_run_speak_json(small_store: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    words = ["train", "--latents", small_store, "--out", out, "--loss", "lm", "--epochs", "2"]
    words += ["--width", "16", "--batch-size", "1", "--precision", "fp32"]
    plan = run_json(*words, "--dry-run")
    assert plan["steps"] == 2 * plan["samples"]
    assert not Path(out).exists()
    trained = run_json(*words)
    fixed = [
        "run",
        "parameters",
        "epochs",
        "steps",
        "best_epoch",
        "val_dsc",
        "seconds",
        "decoder_calls",
    ]
    assert set(fixed) <= trained.keys()
    assert trained["steps"] == plan["steps"]
    assert trained["parameters"] == plan["parameters"]
    assert run_json(*words) == trained
    scores = run_json(
        "evaluate", "--run", out, "--latents", small_store, "--masks", str(tmp_path / "masks")
    )
    fixed = ["split", "n", "dsc", "iou", "hd95", "dsc_ci95", "missed"]
    assert set(fixed) <= scores.keys()
    assert len(list((tmp_path / "masks").glob("*.png"))) == scores["n"]


def test_json_is_all_there_is_on_stdout_and_talk_goes_to_stderr(
    small_store: str, tmp_path: Path
) -> None:
    words = ["train", "--latents", small_store, "--out", str(tmp_path / "run"), "--loss", "lm"]
    words += ["--epochs", "1", "--width", "16", "--precision", "fp32", "--json"]
    first = run(*words)
    assert len(first.stdout.splitlines()) == 1
    assert first.stderr == ""
    second = run(*words)
    assert second.stdout == first.stdout
    assert "already complete" in second.stderr


def test_a_run_that_was_replaced_is_not_called_complete(small_store: str, tmp_path: Path) -> None:
    words = ["train", "--latents", small_store, "--out", str(tmp_path / "run"), "--loss", "lm"]
    words += ["--width", "16", "--precision", "fp32", "--json"]
    assert run(*words, "--epochs", "1").exit_code == 0
    replaced = run(*words, "--epochs", "2", "--overwrite")
    assert json.loads(replaced.stdout)["epochs"] == 2
    assert replaced.stderr == ""


def test_tables_for_people_show_per_cent(small_store: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    words = ["train", "--latents", small_store, "--out", out, "--loss", "lm", "--epochs", "1"]
    trained = run(*words, "--width", "16", "--tensorboard")
    assert trained.exit_code == 0, trained.output
    assert "1 / 1" in trained.stdout or "epochs" in trained.stdout
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    shown = run("evaluate", "--run", out, "--latents", small_store)
    assert "DSC %" in shown.stdout


def test_compiling_without_a_compiler_is_refused_before_anything_is_made(
    small_store: str, tmp_path: Path
) -> None:
    out, empty = tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    words = ["train", "--latents", small_store, "--out", str(out), "--compile"]
    refused = subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", *words, "--device", "cpu"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": str(empty), "TORCHINDUCTOR_CACHE_DIR": str(empty)},
    )
    assert refused.returncode == 2
    assert "compiler" in refused.stderr
    assert "fix: install a C++ compiler" in refused.stderr
    assert not out.exists()


def test_bench_encode_and_train_give_ratios(
    small_store: str, kl_folder: Path, tmp_path: Path
) -> None:
    import small

    from pipeline.manifest import write_manifest

    write_manifest(small.ingest(small.write_busi(tmp_path / "raw")), tmp_path / "m.parquet")
    words = ["bench", "encode", str(tmp_path / "m.parquet"), "--tokenizer", str(kl_folder)]
    encode = run_json(*words, "--samples", "2", "--views", "2", "--size", "64")
    rate, bare = encode["samples_per_s"], encode["tokenizer_samples_per_s"]
    assert encode["efficiency"] == pytest.approx(rate / bare)
    assert encode["cells"] == 4
    words = ["bench", "train", "--latents", small_store]
    train = run_json(*words, "--steps", "2", "--batch-size", "2", "--precision", "fp32")
    steps = train["steps_per_s"]
    assert train["efficiency"] == pytest.approx(steps / train["compute_steps_per_s"])
    assert train["speedup"] == pytest.approx(steps / train["online_steps_per_s"])
    assert train["speedup_fp32"] == pytest.approx(steps / train["online_fp32_steps_per_s"])
    on_one_batch = train["lm_steps_per_s"] / train["compute_steps_per_s"]
    assert train["lm_ratio"] == pytest.approx(on_one_batch)
    assert train["seg_decoder"] == "student"


def test_bench_read_gives_ratios_and_the_bytes_on_disk(small_store: str) -> None:
    read = run_json("bench", "read", "--latents", small_store)
    rate = read["samples_per_s"]
    assert read["ratio"] == pytest.approx(rate / read["npy_samples_per_s"])
    assert read["files_ratio"] == pytest.approx(rate / read["files_samples_per_s"])
    store = open_store(small_store)
    samples = store.samples["split"].to_list()
    assert read["cells"] == 3 * samples.count("train")
    arrays = [Path(small_store, name, "c") for name in ("image_mean", "mask_mean", "mask")]
    on_disk = sum(p.stat().st_size for a in arrays for p in a.rglob("*") if p.is_file())
    assert read["bytes_per_cell"] == pytest.approx(on_disk / (3 * len(samples)))


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (["train", "--latents", "nowhere.zarr"], 4, "no latent store at nowhere.zarr"),
        (["evaluate", "--run", "nowhere", "--latents", "STORE"], 4, "no run at nowhere"),
        (["train", "--latents", "STORE", "--width", "20"], 2, "multiple of 16"),
        (["train", "--latents", "STORE", "--loss", "dice"], 2, "Invalid value for '--loss'"),
        (["train", "--latents", "STORE", "--device", "warp"], 2, "warp"),
        (["import-checkpoint", "nowhere.pth", "--out", "x"], 3, "nowhere.pth does not exist"),
        (["no-such-command"], 2, "No such command"),
    ],
)
def test_a_mistake_has_its_exit_code_and_no_traceback(
    words: list[str], exit_code: int, says: str, small_store: str
) -> None:
    result = run(*[small_store if word == "STORE" else word for word in words])
    assert result.exit_code == exit_code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    if exit_code != 2 or "error:" in result.stderr:
        assert "fix:" in result.stderr


@pytest.fixture(scope="module")
def scored_run(small_store: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("scored") / "run")
    words = ["train", "--latents", small_store, "--out", out, "--loss", "lm", "--epochs", "1"]
    assert run(*words, "--width", "16", "--precision", "fp32").exit_code == 0
    return out


def test_evaluate_scores_native_size_and_either_hd95(small_store: str, scored_run: str) -> None:
    words = ["evaluate", "--run", scored_run, "--latents", small_store]
    pooled = run_json(*words, "--native", "--hd95", "pooled")
    assert pooled["hd95_definition"] == "pooled"
    assert {"dsc", "iou", "hd95", "dsc_ci95", "dsc_sd"} <= pooled["native"].keys()
    monai = run_json(*words)
    assert monai["hd95_definition"] == "monai"
    assert "native" not in monai
    shown = run(*words, "--native").stdout
    assert shown.count("DSC %") == 2
    assert "original masks" in shown
    assert "MONAI" in shown


def test_evaluate_with_the_ceiling_gives_its_keys_and_shows_it(
    small_store: str, scored_run: str, tmp_path: Path
) -> None:
    words = ["evaluate", "--run", scored_run, "--latents", small_store, "--ceiling"]
    found = run_json(*words)["ceiling"]
    alone = run_json("ceiling", small_store)
    assert {"n", "dsc", "iou", "hd95", "image_psnr_db"} <= found.keys()
    assert found.items() <= alone.items()
    assert run(*words).stdout.count(f"{found['image_psnr_db']:.2f}") == 1
    reported = run("report", scored_run, "-o", str(tmp_path / "r.html"))
    assert f"ceiling {100 * found['dsc']:.2f} %, Otsu " in reported.stdout


def test_bench_predict_gives_a_ratio_and_refuses_what_predict_would_skip(
    scored_run: str, tmp_path: Path
) -> None:
    import small

    for number in range(3):
        small.write_image(tmp_path / f"{number}.png", number, height_px=70)
    words = ["bench", "predict", "--run", scored_run, str(tmp_path), "--batch-size", "2"]
    found = run_json(*words)
    rate, bare = found["images_per_s"], found["compute_images_per_s"]
    assert found["efficiency"] == pytest.approx(rate / bare)
    assert (found["images"], found["batch_size"]) == (3, 2)
    (tmp_path / "broken.png").write_text("no image")
    refused = run(*words)
    assert refused.exit_code == 3
    assert "broken.png" in refused.stderr


def test_report_writes_a_page_or_prints_a_table(
    small_store: str, scored_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = run_json("evaluate", "--run", scored_run, "--latents", small_store)
    monkeypatch.chdir(tmp_path)
    printed = run("report", scored_run, "--table", "csv")
    assert printed.exit_code == 0, printed.output
    assert printed.stderr == ""
    assert f"{100 * scores['dsc']:.2f}" in printed.stdout.splitlines()[1]
    assert list(tmp_path.iterdir()) == []
    written = run_json("report", scored_run, "--table", "latex", "-o", "table.tex")
    assert Path("table.tex").read_text() == written["table"]
    assert written["rows"][0]["scores"]["dsc"] == pytest.approx(100 * scores["dsc"])
    answer = run_json("report", scored_run)
    assert answer["page"] == "report.html"
    assert answer["runs"][0]["dsc"] == scores["dsc"]
    assert Path("report.html").read_text().startswith("<!doctype html>")


def test_long_work_says_how_far_it_is_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 16.0, 16.0, 20.0])
    monkeypatch.setattr("cli.options.time.monotonic", lambda: next(clock))
    with progress_bar("encode", "cells") as progress:
        progress(1, 9)
        progress(5, 9)
        progress(6, 9)
    assert capsys.readouterr().err == "encode: 5 of 9 cells\n"
