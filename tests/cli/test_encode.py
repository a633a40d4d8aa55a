"""gms-lmm encode, end to end: what stands on which stream, and with which exit code."""

import json
from pathlib import Path

import pytest
import small
from click.testing import CliRunner, Result

from cli.main import main
from pipeline.manifest import write_manifest
from pipeline.store import open_store


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "m.parquet"
    write_manifest(small.ingest(small.write_busi(tmp_path / "raw")), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    # A name that a terminal library might take for markup.
    return tmp_path / "busi [bold].zarr"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["encode", *(str(word) for word in words)])


def words(manifest: Path, store: Path, tokenizer: Path, *more: str) -> list[str | Path]:
    return [manifest, store, "--tokenizer", tokenizer, "--size", str(small.SIZE_PX), *more]


def test_json_is_all_that_stands_on_stdout_and_stderr_is_empty(
    manifest: Path, store: Path, kl_folder: Path
) -> None:
    result = run(*words(manifest, store, kl_folder, "--views", "2", "--json"))
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert {"encoded", "reused", "present", "seconds", "samples_per_s"} <= answer.keys()
    assert (answer["encoded"], answer["reused"], answer["present"]) == (12, 0, 12)
    assert answer["samples_per_s"] == pytest.approx(12 / answer["seconds"])
    open_store(str(store)).require_complete()


def test_second_run_says_that_all_is_there_and_exits_0(
    manifest: Path, store: Path, kl_folder: Path
) -> None:
    run(*words(manifest, store, kl_folder))
    result = run(*words(manifest, store, kl_folder, "--json"))
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert (answer["encoded"], answer["reused"], answer["present"]) == (0, 6, 6)
    assert result.stderr == f"{store} is already complete: 6 cells, nothing to encode\n"


def test_people_get_one_line_with_units(manifest: Path, store: Path, kl_folder: Path) -> None:
    result = run(*words(manifest, store, kl_folder))
    assert result.exit_code == 0
    assert result.stderr == f"{store}: 6 cells when done, 0 MB of latents\n"
    assert result.stdout.startswith(f"{store}: 6 cells encoded, 0 reused, 6 present, ")
    assert result.stdout.endswith(" cells/s\n")


def test_options_reach_the_store(manifest: Path, store: Path, kl_folder: Path) -> None:
    options = [
        "--views",
        "3",
        "--eval-views",
        "2",
        "--seed",
        "5",
        "--precision",
        "bf16",
        "--batch-size",
        "4",
    ]
    result = run(*words(manifest, store, kl_folder, *options, "--device", "cpu"))
    assert result.exit_code == 0
    attributes = open_store(str(store)).attributes
    assert (attributes["views"], attributes["eval_views"], attributes["seed"]) == (3, 2, 5)
    assert attributes["preprocessing"]["precision"] == "bf16"
    assert attributes["preprocessing"]["size"] == small.SIZE_PX
    assert attributes["tokenizer"]["name"] == str(kl_folder)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--views", "0"], "--views"),
        (["--batch-size", "0"], "neither 'auto' nor a positive number"),
        (["--batch-size", "many"], "neither 'auto' nor a positive number"),
        (["--precision", "fp8"], "--precision"),
        (["--device", "gpu"], "device 'gpu' cannot be used"),
        (["--size", "60"], "--size 60 is not a multiple of 8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_that_do_not_fit_are_exit_2(
    manifest: Path, store: Path, kl_folder: Path, more: list[str], complaint: str
) -> None:
    result = run(*words(manifest, store, kl_folder, *more))
    assert (result.exit_code, result.stdout) == (2, "")
    assert complaint in result.stderr
    assert not store.exists()


def test_bad_image_is_exit_3_and_named(manifest: Path, store: Path, kl_folder: Path) -> None:
    image = small.image_path(manifest.parent / "raw", "benign (2)")
    image.write_bytes(b"no image")
    result = run(*words(manifest, store, kl_folder, "--json"))
    assert (result.exit_code, result.stdout) == (3, "")
    assert str(image) in result.stderr
    assert result.stderr.count("error:") == result.stderr.count("fix:") == 1


@pytest.mark.parametrize("other", [["--repair"], ["--scheduler", "local:2"]], ids=" ".join)
def test_a_share_of_a_store_is_neither_repaired_nor_shared_out_again(
    manifest: Path, store: Path, kl_folder: Path, other: list[str]
) -> None:
    result = run(*words(manifest, store, kl_folder, "--partition", "1/2", *other))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "not --partition" in result.stderr


@pytest.mark.parametrize("gone", ["manifest", "tokenizer"])
def test_missing_artefact_is_exit_4(
    manifest: Path, store: Path, kl_folder: Path, gone: str
) -> None:
    if gone == "manifest":
        manifest.unlink()
    tokenizer = kl_folder if gone == "manifest" else kl_folder / "nowhere"
    result = run(*words(manifest, store, tokenizer, "--json"))
    assert (result.exit_code, result.stdout) == (4, "")
    assert str(manifest if gone == "manifest" else tokenizer) in result.stderr
    assert "fix:" in result.stderr
    assert not store.exists()


def test_another_tokenizer_is_exit_2_and_names_both(
    manifest: Path, store: Path, kl_folder: Path, tmp_path: Path
) -> None:
    run(*words(manifest, store, kl_folder))
    small.small_tiny().save_pretrained(tmp_path / "other")
    result = run(*words(manifest, store, tmp_path / "other", "--json"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(kl_folder) in result.stderr
    assert str(tmp_path / "other") in result.stderr
    assert "fix: encode into another store path" in result.stderr


def test_help_gives_an_example_and_the_defaults() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "gms-lmm encode manifest.parquet busi.zarr --tokenizer" in result.stdout
    for default in ("[default: 224", "[default: fp32]", "[default: auto]", "[default: 1"):
        assert default in result.stdout
