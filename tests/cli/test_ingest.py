"""gms-lmm ingest and gms-lmm datasets, end to end."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cli.main import main
from pipeline.manifest import read_manifest


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def pair(root: Path, stem: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8), np.uint8)
    for folder, values in (("images", pixels), ("masks", np.eye(6, 8, dtype=np.uint8) * 255)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / folder / f"{stem}.png")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Ten sound pairs, one with a name full of spaces, quotes and non-ASCII letters."""
    root = tmp_path / "the archive"
    for seed, stem in enumerate([*"abcdefghi", "die 'größte' \"Läsion\" 乳腺"]):
        pair(root, stem, seed)
    return root


def test_json_is_all_that_stands_on_stdout(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    result = run("ingest", archive, "--layout", "pairs", "-o", out, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert answer["samples"] == 10
    assert answer["by_split"] == {"train": 7, "val": 1, "test": 2}
    assert answer["quarantined"] == []
    assert answer["digest"] == read_manifest(out).digest


def test_second_run_leaves_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    words = ("ingest", archive, "--layout", "pairs", "-o", out)
    assert run(*words).exit_code == 0
    first = out.read_bytes()
    assert run(*words).exit_code == 0
    assert out.read_bytes() == first


def test_people_get_a_table(archive: Path, tmp_path: Path) -> None:
    result = run("ingest", archive, "--layout", "pairs", "-o", tmp_path / "m.parquet")
    assert result.exit_code == 0
    for word in ("train", "val", "test", "10 samples"):
        assert word in result.stdout


def test_options_reach_the_manifest(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    options = ("--split", "0.5/0.5", "--val-fraction", "0", "--seed", "4", "--name", "mine")
    result = run("ingest", archive, "--layout", "pairs", "-o", out, *options, "--json")
    assert json.loads(result.stdout)["by_split"] == {"train": 5, "val": 0, "test": 5}
    manifest = read_manifest(out)
    drawn = {"split": "drawn 0.5/0.5", "val_fraction": "0.0", "seed": "4", "twins": "found at 0.75"}
    assert manifest.settings == drawn
    assert set(manifest.frame["dataset"]) == {"mine"}


def test_bad_archive_is_exit_3_with_one_message_and_nothing_written(
    archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.parquet"
    (archive / "images" / "a.png").write_text("not an image")
    (archive / "masks" / "b.png").unlink()
    result = run("ingest", archive, "--layout", "pairs", "-o", out, "--json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.count("error:") == result.stderr.count("fix:") == 1
    for word in ("images/a.png", "images/b.png", "2 of 10", "--skip-bad"):
        assert word in result.stderr
    assert not out.exists()


def test_skip_bad_names_what_it_left_out(archive: Path, tmp_path: Path) -> None:
    (archive / "masks" / "b.png").unlink()
    words = ("ingest", archive, "--layout", "pairs", "-o", tmp_path / "m.parquet", "--skip-bad")
    result = run(*words, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["quarantined"] == [
        {"file": "images/b.png", "kind": "no-mask", "detail": "image without a mask"}
    ]
    assert "images/b.png: image without a mask" in result.stderr


def test_old_manifest_survives_a_failed_ingest(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.parquet"
    assert run("ingest", archive, "--layout", "pairs", "-o", out).exit_code == 0
    before = out.read_bytes()
    (archive / "masks" / "b.png").unlink()
    assert run("ingest", archive, "--layout", "pairs", "-o", out).exit_code == 3
    assert out.read_bytes() == before


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "another layout"])
def test_folder_that_does_not_fit_is_exit_3(archive: Path, tmp_path: Path, empty: bool) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    result = run("ingest", root if empty else archive, "--layout", "glas", "-o", tmp_path / "m")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "expected" in result.stderr
    assert ("empty folder" if empty else "fix: --layout pairs") in result.stderr
    assert not (tmp_path / "m").exists()


def test_unknown_names_of_a_split_file_are_exit_3(archive: Path, tmp_path: Path) -> None:
    names = {"train": {"name_list": ["a", "nobody_1"]}, "test": {"name_list": ["nobody_2"]}}
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(names))
    words = ("ingest", archive, "--layout", "pairs", "--split-file", tmp_path / "s.pkl")
    result = run(*words, "-o", tmp_path / "m")
    assert result.exit_code == 3
    assert "2 names of the split match no sample (s.pkl): nobody_1, nobody_2" in result.stderr
    assert not (tmp_path / "m").exists()


def test_pickle_with_code_is_exit_3_and_not_executed(archive: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch '{marker}'",)

    (tmp_path / "s.pkl").write_bytes(pickle.dumps(Evil()))
    words = ("ingest", archive, "--layout", "pairs", "--split-file", tmp_path / "s.pkl")
    result = run(*words, "-o", tmp_path / "m")
    assert result.exit_code == 3
    assert "refused" in result.stderr
    assert not marker.exists()
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--split", "0.8"),
        ("--split", "0.8/0.3"),
        ("--split", "0.8/0.2", "--split-file", "s.csv"),
        ("--val-fraction", "1.5"),
        ("--include-normal",),
        ("--folds", "1"),
        ("--folds", "11", "--split", "1/0"),
        ("--window", "12"),
        ("--window", "9,5"),
        ("--foreground", "reddish"),
        ("--no-twins", "--twin-sheet", "sheet.png"),
    ],
    ids=" ".join,
)
def test_words_that_do_not_fit_are_exit_2(
    archive: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    result = run("ingest", archive, "--layout", "pairs", "-o", tmp_path / "m", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "m").exists()


def test_folds_and_twins_are_in_the_answer(archive: Path, tmp_path: Path) -> None:
    words = ("ingest", archive, "--layout", "pairs", "-o", tmp_path / "m.parquet", "--json")
    answer = json.loads(run(*words, "--folds", "4", "--split", "0.8/0.2").stdout)
    assert answer["folds"] == [2, 2, 2, 1]
    assert answer["by_split"] == {"train": 7, "val": 1, "test": 2}
    across = {"test-train": 0, "val-train": 0, "test-val": 0}
    assert answer["twins"] == {"groups": 0, "samples": 0, "across_splits": across}
    answer = json.loads(run(*words, "--no-twins").stdout)
    assert (answer["twins"], answer["folds"]) == (None, None)


def test_people_are_told_of_folds(archive: Path, tmp_path: Path) -> None:
    words = ("--layout", "pairs", "-o", tmp_path / "m.parquet", "--folds", "2", "--split", "1/0")
    assert "folds of 5, 4 samples" in run("ingest", archive, *words).stdout


def test_twin_sheet_is_drawn_where_there_are_twins(archive: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    words = ("ingest", archive, "--layout", "pairs", "-o", tmp_path / "m", "--twin-sheet", sheet)
    result = run(*words)
    assert (result.exit_code, sheet.exists()) == (0, False)
    assert "no twins" in result.stderr
    with Image.open(archive / "images" / "a.png") as image:
        image.rotate(180).save(archive / "images" / "b.png")
    result = run(*words)
    assert (result.exit_code, sheet.exists()) == (0, True)
    assert "1 of 1 pairs" in result.stderr


@pytest.mark.parametrize(
    ("words", "window"), [((), [0, 1023]), (("--window", "7,900"), [7, 900])], ids=str
)
def test_window_reaches_the_manifest(
    archive: Path, tmp_path: Path, words: tuple[str, ...], window: list[int]
) -> None:
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 20
    Image.fromarray(deep).save(archive / "images" / "a.png")
    out = tmp_path / "m.parquet"
    result = run("ingest", archive, "--layout", "pairs", "-o", out, "--json", *words)
    assert json.loads(result.stdout)["window"] == window
    assert read_manifest(out).window == tuple(window)


def test_datasets_says_layout_licence_and_source() -> None:
    result = run("datasets", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    layouts = json.loads(result.stdout)["layouts"]
    names = ["busi", "bus", "glas", "ham10000", "kvasir-instrument", "gms", "pairs"]
    assert [layout["name"] for layout in layouts] == names
    assert all(layout["licence"] and layout["published"] for layout in layouts)
    assert "10.7910/DVN/DBW86T" in run("datasets").stdout


def test_gms_split_of_busi_is_reproduced(assets: Path, tmp_path: Path) -> None:
    """647 lesions, 517 for training and 130 for testing, as the GMS authors published them."""
    file = assets / "splits" / "gms" / "busi_train_test_names.pkl"
    words = ("ingest", assets / "data" / "busi", "--layout", "busi", "--split-file", file)
    result = run(*words, "-o", tmp_path / "m.parquet", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["samples"] == 647
    assert answer["by_split"]["train"] + answer["by_split"]["val"] == 517
    assert answer["by_split"]["test"] == 130
    assert answer["multi_mask"] == 17
    across = answer["twins"]["across_splits"]
    assert across["test-train"] + across["test-val"] == 36  # as seen on the sheet of twins
    # As it was before twins were looked for: what is encoded has not changed.
    digest = "026def65f163044c0141ca3e53647072b56f75b8258fff80d81dddb2a6c8042d"
    assert answer["digest"] == digest
    published = pickle.loads(file.read_bytes())
    frame = read_manifest(tmp_path / "m.parquet").frame
    held = {row["sample_id"] for row in frame.to_dicts() if row["split"] == "test"}
    spelled = {name.replace(" (", "_").rstrip(")") for name in held}
    assert spelled == set(published["test"]["name_list"])


def test_gms_split_of_ham10000_names_what_a_partial_copy_lacks(
    assets: Path, tmp_path: Path
) -> None:
    file = assets / "splits" / "gms" / "ham10000_train_test_names.pkl"
    words = ("ingest", assets / "data" / "ham10000", "--layout", "ham10000", "--split-file", file)
    result = run(*words, "-o", tmp_path / "m.parquet")
    assert result.exit_code == 3
    assert f"{10_015 - 2_500} names of the split match no sample" in result.stderr
    assert "ISIC_0024306" in result.stderr
    assert not (tmp_path / "m.parquet").exists()
