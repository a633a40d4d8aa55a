"""gms-lmm predict as it is called: what is printed, what is written, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from click.testing import CliRunner, Result
from PIL import Image

import lmm.predict
from cli.main import main
from lmm.model import LatentMappingModel
from lmm.run import Run
from lmm.run.authors import import_checkpoint


@pytest.fixture
def run_path(small_run: Run) -> str:
    return str(small_run.path)


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three images, and the tests' own working directory."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "benign (1).png")):
        small.write_image(folder / name, i, 70 + i)
    monkeypatch.chdir(tmp_path)
    return folder


def predict(*words: str) -> Result:
    return CliRunner().invoke(main, ["predict", *words])


def test_a_folder_becomes_masks_and_one_json_object(run_path: str, scans: Path) -> None:
    result = predict("--run", run_path, "scans", "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert (answer["run"], answer["n"], answer["masks"]) == (run_path, 3, "out")
    assert answer["images_per_s"] == pytest.approx(3 / answer["seconds"])
    assert answer["skipped"] == []
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.png", "b.png", "benign (1).png"]
    with Image.open("out/b.png") as mask:
        assert mask.size == (80, 71)


def test_the_command_and_python_give_one_mask(run_path: str, scans: Path) -> None:
    words = ["--precision", "fp32", "--batch-size", "1", "--grey", "--device", "cpu"]
    assert predict("--run", run_path, "scans/a.png", "-o", "out", *words).exit_code == 0
    model = lmm.predict.load(run_path, precision="fp32", device="cpu")
    mask = model(scans / "a.png")
    np.testing.assert_array_equal(np.array(Image.open("out/a.png")), mask * np.uint8(255))
    grey = np.array(Image.open("out/grey/a.png"))
    np.testing.assert_allclose(grey / 255, model.grey(scans / "a.png"), atol=0.51 / 255)


def test_the_default_folder_is_masks_and_people_read_a_rate(run_path: str, scans: Path) -> None:
    result = predict("--run", run_path, "scans/*.jpg")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("masks: 1 masks in ")
    assert [p.name for p in Path("masks").iterdir()] == ["b.png"]


def test_a_broken_file_is_named_after_the_others_are_written(run_path: str, scans: Path) -> None:
    (scans / "broken.png").write_bytes((scans / "a.png").read_bytes()[:500])
    (scans / "text.png").write_text("no image")
    result = predict("--run", run_path, "scans", "--json")
    assert result.exit_code == 3
    assert "2 of 5 images have no mask, the others are written" in result.stderr
    assert "scans/broken.png: cannot be decoded" in result.stderr
    assert "scans/text.png: is not an image" in result.stderr
    assert "fix:" in result.stderr
    answer = json.loads(result.stdout)
    assert answer["n"] == 3
    assert [one["image"] for one in answer["skipped"]] == ["scans/broken.png", "scans/text.png"]
    assert sorted(p.name for p in Path("masks").iterdir()) == ["a.png", "b.png", "benign (1).png"]


def test_one_stem_twice_is_refused_before_the_run_is_opened(scans: Path) -> None:
    small.write_image(scans / "a.bmp", 7, 70)
    result = predict("--run", "no-such-run", "scans")
    assert result.exit_code == 3
    assert "scans/a.bmp and scans/a.png" in result.stderr
    assert not Path("masks").exists()


def test_an_imported_run_asks_for_its_tokenizer_and_size(scans: Path, kl_folder: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": LatentMappingModel(4, 16).state_dict()}, "lmm.pth")
    import_checkpoint(Path("lmm.pth"), Path("imported"))
    result = predict("--run", "imported", "scans")
    assert result.exit_code == 2
    assert "does not say what --tokenizer and --size are" in result.stderr
    said = ["--tokenizer", str(kl_folder), "--size", "64"]
    result = predict("--run", "imported", "scans", *said, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n"] == 3


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (["--run", "RUN", "nowhere.png"], 3, "nowhere.png: no image there"),
        (["--run", "RUN", "x/*.png"], 3, "x/*.png: no image there"),
        (["--run", "nowhere", "scans"], 4, "no run at nowhere"),
        (["--run", "RUN", "scans", "--size", "128"], 2, "trained at 64 px"),
        (["--run", "RUN", "scans", "-o", "scans"], 2, "would replace it"),
        (["--run", "RUN", "scans", "-o", "scans/a.png"], 2, "cannot be made"),
        (["--run", "RUN", "scans", "--tokenizer", "nothing"], 4, "'nothing' is neither"),
        (["--run", "RUN", "scans", "--batch-size", "0"], 2, "neither 'auto' nor"),
        (["--run", "RUN"], 2, "Missing argument 'IMAGE...'"),
    ],
)
def test_a_mistake_has_its_exit_code(
    words: list[str], exit_code: int, says: str, run_path: str, scans: Path
) -> None:
    result = predict(*[run_path if word == "RUN" else word for word in words])
    assert result.exit_code == exit_code, result.output
    assert says in result.stderr
    assert result.stdout == ""
    assert sorted(p.name for p in scans.iterdir()) == ["a.png", "b.jpg", "benign (1).png"]
