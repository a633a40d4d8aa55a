"""Images that a run has seen are not scored as if it had not, whatever split or store has them."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import small
from click.testing import CliRunner, Result
from PIL import Image

from cli.main import main
from lmm.splits import images_digest
from pipeline.store import open_store

TRAIN = ["--loss", "lm", "--epochs", "1", "--batch-size", "1", "--width", "16", "--device", "cpu"]


def gms_lmm(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: object) -> Result:
    result = gms_lmm(*words)
    assert result.exit_code == 0, result.output
    return result


def encode(root: Path, store: Path, kl: Path, seed: int) -> Result:
    manifest = store.with_suffix(f".{seed}.parquet")
    split = ["--split", "0.5/0.5", "--val-fraction", "0.34", "--seed", seed]
    done("ingest", root, "--layout", "busi", "-o", manifest, *split)
    words = ["--tokenizer", kl, "--size", small.SIZE_PX, "--views", 1, "--device", "cpu", "--json"]
    return done("encode", manifest, store, *words)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, kl_folder: Path) -> Path:
    """A folder with raw images, a store of them under seed 0, a run on it, and its test scores."""
    home = tmp_path_factory.mktemp("seen")
    small.write_busi(home / "raw")
    encode(home / "raw", home / "s.zarr", kl_folder, seed=0)
    done("train", "--latents", home / "s.zarr", "--out", home / "run", *TRAIN)
    done("evaluate", "--run", home / "run", "--latents", home / "s.zarr", "--device", "cpu")
    return home


@pytest.fixture
def home(ours: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ours, tmp_path / "home"))


def splits(store: Path) -> dict[str, set[str]]:
    parts = open_store(str(store)).samples.group_by("split").agg("sample_id").rows()
    return {split: set(names) for split, names in parts}


def evaluate(home: Path, *words: object, store: str = "s.zarr") -> Result:
    return gms_lmm(
        *("evaluate", "--run", home / "run", "--latents", home / store, "--device", "cpu", *words)
    )


def test_a_store_split_anew_does_not_pass_trained_images_for_test_images(
    home: Path, kl_folder: Path
) -> None:
    before = splits(home / "s.zarr")
    honest = home / "run" / "evaluate" / "s-test.json"
    content = honest.read_bytes()
    seed = 1
    while True:  # seeds until one puts a trained image into test
        again = encode(home / "raw", home / "s.zarr", kl_folder, seed)
        after = splits(home / "s.zarr")
        if after["test"] & before["train"] and after["test"] & before["val"]:
            break
        seed += 1
    assert json.loads(again.stdout)["encoded"] == 0

    refused = evaluate(home)
    assert refused.exit_code == 4
    trained = sorted(after["test"] & before["train"])
    assert f"{len(trained)} trained on: {trained[0]}" in refused.stderr
    assert "chose its epoch: " in refused.stderr
    assert "--allow-seen" in refused.stderr
    assert [file.name for file in honest.parent.glob("*.json")] == ["s-test.json"]

    allowed = evaluate(home, "--allow-seen", "--json")
    assert allowed.exit_code == 0, allowed.output
    summary = json.loads(allowed.stdout)
    count = {"train": len(trained), "select": len(after["test"] & before["val"])}
    assert summary["seen"] == count
    marked = honest.with_name(f"s-{summary['images_digest'][:8]}-test-seen.json")
    assert json.loads(marked.read_text())["seen"] == count
    assert honest.read_bytes() == content
    words = f"{count['train']} of {summary['n']} were trained on"
    assert words in evaluate(home, "--allow-seen").stdout

    done("report", home / "run", "-o", home / "page.html")
    assert words in (home / "page.html").read_text()
    assert words in done("report", home / "run", "--table", "csv").stdout


def test_renamed_copies_in_another_store_are_known_again(
    home: Path, kl_folder: Path, tmp_path: Path
) -> None:
    trained = min(splits(home / "s.zarr")["train"])
    parts = {"benign (31)": "test", "benign (32)": "train", "malignant (31)": "test"}
    root = small.write_busi(tmp_path / "raw", tuple(parts))
    shutil.copy(small.image_path(home / "raw", trained), small.image_path(root, "benign (31)"))
    with Image.open(small.image_path(root, "benign (31)")) as image:
        box = Image.new("L", image.size)
    box.paste(255, (10, 10, 30, 40))
    box.save(small.image_path(root, "benign (31)").with_name("benign (31)_mask.png"))
    splits_file = tmp_path / "splits.csv"
    pl.DataFrame([*parts.items()], schema=["sample_id", "split"], orient="row").write_csv(
        splits_file
    )
    manifest = tmp_path / "m.parquet"
    done(
        "ingest",
        root,
        "--layout",
        "busi",
        "-o",
        manifest,
        "--split-file",
        splits_file,
        "--val-fraction",
        0,
    )
    words = ["--tokenizer", kl_folder, "--size", small.SIZE_PX, "--views", 1, "--device", "cpu"]
    done("encode", manifest, home / "other.zarr", *words)
    refused = evaluate(home, store="other.zarr")
    assert refused.exit_code == 4
    assert "1 trained on: benign (31)" in refused.stderr
    assert evaluate(home, "--split", "train", store="other.zarr").exit_code == 0
    digest = images_digest(open_store(str(home / "other.zarr")).samples.filter(split="train"))
    written = {file.name for file in (home / "run" / "evaluate").glob("other-*.json")}
    assert written == {f"other-{digest[:8]}-train.json"}


@pytest.mark.parametrize(
    ("split", "says"), [("train", "trained on: "), ("val", "chose its epoch: ")]
)
def test_what_trained_or_chose_is_scored_only_on_demand(home: Path, split: str, says: str) -> None:
    refused = evaluate(home, "--split", split)
    assert refused.exit_code == 4
    assert says in refused.stderr
    assert "held out test" in refused.stderr
    assert evaluate(home, "--split", split, "--allow-seen").exit_code == 0
    assert (home / "run" / "evaluate" / f"s-{split}-seen.json").exists()


def test_the_gms_protocol_s_test_images_were_seen(home: Path) -> None:
    words = ["--out", home / "run2", "--select-on", "test", *TRAIN]
    done("train", "--latents", home / "s.zarr", *words)
    shutil.rmtree(home / "run")
    (home / "run2").rename(home / "run")
    refused = evaluate(home)
    assert refused.exit_code == 4
    assert "chose its epoch (--select-on test, the GMS authors' protocol): " in refused.stderr
    assert "held out val" in refused.stderr


def test_a_run_is_not_gone_on_with_on_a_store_split_anew(home: Path, kl_folder: Path) -> None:
    before = splits(home / "s.zarr")
    seed = 1
    while splits(home / "s.zarr") == before:
        encode(home / "raw", home / "s.zarr", kl_folder, seed)
        seed += 1
    refused = gms_lmm("train", "--latents", home / "s.zarr", "--out", home / "run", *TRAIN)
    assert refused.exit_code == 4
    assert "is a run with another store: images" in refused.stderr
