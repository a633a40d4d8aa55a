"""Which files a word leads to."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import InputError
from pipeline.images.files import find_images, require_distinct_stems


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a.png, b.jpg, notes.txt and .hidden.png; deep/c.png; odd[1].png."""
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "b.jpg", ".hidden.png", "deep/c.png", "odd[1].png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_stands_for_its_own_image_files(home: Path) -> None:
    names = ["a.png", "b.jpg", "odd[1].png"]
    assert find_images([home]) == [home / name for name in names]
    assert find_images(["."]) == [Path(name) for name in names]


def test_a_file_is_taken_by_its_name_alone(home: Path) -> None:
    assert find_images(["notes.txt", "odd[1].png"]) == [Path("notes.txt"), Path("odd[1].png")]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.png", ["a.png", "odd[1].png"]),
        ("*", ["a.png", "b.jpg", "odd[1].png"]),
        ("**/*.png", ["a.png", "deep/c.png", "odd[1].png"]),
        ("[ab].*", ["a.png", "b.jpg"]),
    ],
)
def test_a_glob_the_shell_left_alone_is_expanded(
    pattern: str, names: list[str], home: Path
) -> None:
    assert find_images([pattern]) == [Path(name) for name in names]


def test_a_file_reached_twice_is_taken_once(home: Path) -> None:
    assert find_images(["b.jpg", ".", "deep/../a.png", "b.*"]) == [
        Path("b.jpg"),
        Path("a.png"),
        Path("odd[1].png"),
    ]


def test_every_word_that_leads_nowhere_is_named(home: Path) -> None:
    (home / "empty").mkdir()
    with pytest.raises(InputError, match=r"gone\.png; empty; x\*\.png: no image there"):
        find_images(["a.png", "gone.png", "empty", "x*.png"])


def test_two_files_with_one_stem_are_refused_naming_both() -> None:
    require_distinct_stems([Path("a.png"), Path("x/b.png")])
    with pytest.raises(InputError, match=r"2 names .*: x/a\.png and y/a\.jpg; b\.png and b\.tif"):
        require_distinct_stems([Path(p) for p in ("x/a.png", "y/a.jpg", "b.png", "c", "b.tif")])
