"""What an image or mask file becomes, and which files are refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UsageError
from pipeline.images import (
    FULL,
    ImageError,
    parse_foreground,
    read_image,
    read_mask,
    read_union,
    resize_image,
    resize_mask,
    window_of,
)

GREY = np.array([[0, 100], [200, 255]], np.uint8)
SQUARE = np.array([[0, 0, 0], [0, 1, 1]], np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_is_repeated_over_three_channels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", Image.fromarray(GREY)))
    assert image.dtype == np.uint8
    assert image.tolist() == [[[0] * 3, [100] * 3], [[200] * 3, [255] * 3]]


def test_sixteen_bit_grey_is_mapped_from_its_full_range(tmp_path: Path) -> None:
    deep = np.array([[0, 257], [32768, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        image = read_image(save(tmp_path / name, Image.fromarray(deep)))
        assert image[..., 0].tolist() == [[0, 1], [128, 255]]  # 32768 / 257 = 127.5019


def test_window_says_what_becomes_black_and_white(tmp_path: Path) -> None:
    deep = np.array([[0, 100, 600, 1100, 65535]], np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(deep))
    assert read_image(path, (100, 1100))[0, :, 0].tolist() == [0, 0, 128, 255, 255]  # 127.5
    assert read_image(path, FULL).tolist() == read_image(path).tolist()


def test_window_leaves_eight_bits_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY))
    assert read_image(path, (0, 100)).tolist() == read_image(path).tolist()


@pytest.mark.parametrize(
    ("highest", "white"),
    [(0, 255), (255, 255), (256, 1023), (4095, 4095), (4096, 16383), (16384, 65535)],
)
def test_window_is_of_the_fewest_bits_that_hold_the_data(highest: int, white: int) -> None:
    assert window_of(highest) == (0, white)


def test_palette_image_shows_its_colours(tmp_path: Path) -> None:
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    indexed.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", indexed, transparency=b"\x00\xff")
    assert read_image(path).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (1, 1), (9, 8, 7, 0))
    assert read_image(save(tmp_path / "a.png", clear)).tolist() == [[[9, 8, 7]]]
    clear = Image.new("LA", (1, 1), (9, 0))
    assert read_image(save(tmp_path / "b.png", clear)).tolist() == [[[9, 9, 9]]]


def test_one_bit_and_cmyk_images_work(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.png", Image.new("1", (2, 1), 1))).min() == 255
    ink = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert read_image(save(tmp_path / "a.tif", ink)).tolist() == [[[255, 0, 0]]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the left column becomes the top row
    pixels = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(pixels), exif=exif)
    assert read_image(path)[..., 0].tolist() == [[4, 1], [5, 2], [6, 3]]


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_multi_frame_file_is_refused(tmp_path: Path, name: str) -> None:
    frames = [Image.new("L", (2, 2), shade) for shade in (0, 90, 180)]
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=rf"{name}: holds 3 frames") as caught:
        read_image(path)
    assert caught.value.kind == "multi-frame"


def test_gif_of_one_frame_works(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "a.gif", Image.fromarray(GREY))).shape == (2, 2, 3)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif"):
        whole = save(tmp_path / name, Image.fromarray(noise)).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImageError, match=name) as caught:
            read_image(tmp_path / name)
        assert caught.value.kind == "unreadable"


def test_text_and_nothing_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for name in ("note.png", "empty.png", "absent.png"):
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.new("F", (2, 2), 0.5))
    with pytest.raises(ImageError, match="mode F"):
        read_image(path)


@pytest.mark.parametrize("limit", [24, 6])
def test_image_beyond_the_pixel_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """36 pixels: one and a half times the limit (a warning in Pillow), six times (an error)."""
    path = save(tmp_path / "a.png", Image.new("L", (6, 6)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="more pixels than the limit") as caught:
        read_image(path)
    assert caught.value.kind == "too-large"


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(SQUARE * 255),
        Image.fromarray(SQUARE * 7),
        Image.fromarray(SQUARE > 0),
        Image.fromarray(SQUARE.astype(np.uint16) * 65535),
        Image.fromarray(SQUARE * 255).convert("RGBA"),
        Image.fromarray(SQUARE * 255).convert("LA"),
    ],
    ids=["255", "7", "1-bit", "16-bit", "rgba", "la"],
)
def test_two_valued_mask_of_any_depth_is_read(tmp_path: Path, mask: Image.Image) -> None:
    read = read_mask(save(tmp_path / "m.png", mask))
    assert read.dtype == np.bool_
    assert read.tolist() == [[False] * 3, [False, True, True]]


def test_alpha_of_a_mask_is_ignored(tmp_path: Path) -> None:
    mask = Image.fromarray(SQUARE * 255).convert("RGBA")
    mask.putalpha(0)
    assert read_mask(save(tmp_path / "m.png", mask)).sum() == 2


def indexed(path: Path, values: list[int], palette: list[int]) -> Path:
    """A palette mask of one row."""
    mask = Image.fromarray(np.array([values], np.uint8))
    mask.putpalette(palette)
    return save(path, mask)


@pytest.mark.parametrize(
    ("palette", "foreground"),
    [
        ([255, 255, 255, 0, 0, 0], [True, True, False]),  # white is index 0, and the lesion
        ([0, 0, 0, 255, 255, 255], [False, False, True]),
        ([0, 0, 0, 0, 0, 1], [False, False, True]),  # too dark a blue for any luminance
        ([9, 9, 9, 9, 9, 9], [False, False, True]),  # says nothing: by index
    ],
    ids=["white first", "black first", "dark", "alike"],
)
def test_palette_mask_is_read_by_its_colours(
    tmp_path: Path, palette: list[int], foreground: list[bool]
) -> None:
    path = indexed(tmp_path / "m.png", [0, 0, 1], palette)
    assert read_mask(path).tolist() == [foreground]


def test_grey_palette_with_unused_indices_is_read_as_grey(tmp_path: Path) -> None:
    mask = Image.fromarray(SQUARE * 255).convert("P")  # as in HAM10000: indices 0 and 255
    assert mask.mode == "P"
    assert read_mask(save(tmp_path / "m.png", mask)).tolist() == (SQUARE > 0).tolist()


def test_labels_of_a_palette_are_its_indices(tmp_path: Path) -> None:
    path = indexed(tmp_path / "m.png", [0, 1, 2], [255, 255, 255, 0, 0, 0, 255, 0, 0])
    assert read_mask(path, labels=True).tolist() == [[False, True, True]]


def test_palette_of_two_colours_without_black_is_refused_by_its_colours(tmp_path: Path) -> None:
    path = indexed(tmp_path / "m.png", [0, 0, 1], [255, 255, 255, 255, 0, 0])
    with pytest.raises(ImageError, match=r"colours #ffffff \(2 px\), #ff0000 \(1 px\)") as caught:
        read_mask(path)
    assert "--foreground" in caught.value.fix
    assert read_mask(path, foreground="#ff0000").tolist() == [[False, False, True]]


COLOURS = np.array([[[0, 0, 0]] * 3 + [[255, 0, 0]] * 2 + [[0, 128, 0]]], np.uint8)


def test_coloured_mask_is_refused_with_its_colours_and_counts(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(COLOURS))
    words = r"#000000 \(3 px\), #ff0000 \(2 px\), #008000 \(1 px\)"
    with pytest.raises(ImageError, match=words) as caught:
        read_mask(path)
    assert (caught.value.kind, "--foreground" in caught.value.fix) == ("mask-values", True)


@pytest.mark.parametrize(
    ("colour", "foreground"),
    [("#ff0000", [0, 0, 0, 1, 1, 0]), ("#008000", [0, 0, 0, 0, 0, 1]), ("#0000ff", [0] * 6)],
)
def test_foreground_is_the_pixels_of_its_colour(
    tmp_path: Path, colour: str, foreground: list[int]
) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(COLOURS))
    assert read_mask(path, foreground=colour).tolist() == [[bool(one) for one in foreground]]


def test_foreground_may_be_one_of_several_grey_values(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(np.array([[0, 128, 255]], np.uint8)))
    assert read_mask(path, foreground="#808080").tolist() == [[False, True, False]]


@pytest.mark.parametrize("words", ["red", "#F00", "#ff0000", "rgb(255, 0, 0)", "#ff000080"])
def test_colour_is_read_in_many_notations(words: str) -> None:
    assert parse_foreground(words) == "#ff0000"


def test_word_that_is_no_colour_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'reddish' is not a colour"):
        parse_foreground("reddish")


def test_mask_of_one_value_is_all_or_nothing(tmp_path: Path) -> None:
    assert not read_mask(save(tmp_path / "a.png", Image.new("L", (2, 2), 0))).any()
    assert read_mask(save(tmp_path / "b.png", Image.new("L", (2, 2), 255))).all()


@pytest.mark.parametrize(
    ("values", "words"), [([0, 128, 255], "0, 128, 255"), ([1, 2], "1, 2")], ids=str
)
def test_mask_that_is_not_two_valued_is_refused_with_its_values(
    tmp_path: Path, values: list[int], words: str
) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(np.array([values], np.uint8)))
    with pytest.raises(ImageError, match=f"values {words}") as caught:
        read_mask(path)
    assert caught.value.kind == "mask-values"
    assert "threshold" in caught.value.fix


def test_labels_above_zero_are_foreground(tmp_path: Path) -> None:
    path = save(tmp_path / "m.bmp", Image.fromarray(np.array([[0, 1, 2, 31]], np.uint8)))
    assert read_mask(path, labels=True).tolist() == [[False, True, True, True]]


def test_union_takes_the_foreground_of_every_mask(tmp_path: Path) -> None:
    one = save(tmp_path / "1.png", Image.fromarray(np.array([[255, 0, 0]], np.uint8)))
    two = save(tmp_path / "2.png", Image.fromarray(np.array([[0, 0, 255]], np.uint8)))
    assert read_union([one, two]).tolist() == [[True, False, True]]


def test_masks_of_different_size_are_not_united(tmp_path: Path) -> None:
    one = save(tmp_path / "1.png", Image.new("L", (3, 2)))
    two = save(tmp_path / "2.png", Image.new("L", (2, 3)))
    with pytest.raises(ImageError, match=r"2\.png: is 2 × 3 but 1\.png is 3 × 2"):
        read_union([one, two])


def test_shrinking_an_image_averages_so_that_fine_stripes_turn_grey() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize_image(stripes, 8)
    assert small.shape == (8, 8, 3)
    assert small.dtype == np.uint8
    assert np.abs(small.astype(int) - 127).max() < 24


def test_resizing_keeps_a_constant_image() -> None:
    assert (resize_image(np.full((5, 9, 3), 77, np.uint8), 16) == 77).all()


def test_resized_mask_stays_boolean_and_keeps_its_half() -> None:
    mask = np.zeros((10, 30), np.bool_)
    mask[:, 15:] = True
    small = resize_mask(mask, 4)
    assert small.dtype == np.bool_
    assert small.tolist() == [[False, False, True, True]] * 4
