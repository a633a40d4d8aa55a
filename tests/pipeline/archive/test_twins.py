"""Twins are found among made-up and real images, and what only looks like them is not."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from pipeline.archive.layouts import find_home, layout_named, scan_layout
from pipeline.archive.twins import Twin, find_twins, thumbnail, turned

Change = Callable[[Image.Image], Image.Image]


def saved(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def lit(image: Image.Image, contrast: float, brightness: float) -> Image.Image:
    levels = (np.asarray(image, np.float64) - 128) * contrast + 128 + 255 * brightness
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def cropped(image: Image.Image, left: float, top: float) -> Image.Image:
    """95 % of each side, at its old size again; `left` and `top` share out what goes."""
    width, height = image.size
    x, y = left * 0.05 * width, top * 0.05 * height
    box = (x, y, x + 0.95 * width, y + 0.95 * height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


def scaled(image: Image.Image, share: float) -> Image.Image:
    return image.resize((int(image.width * share), int(image.height * share)))


CHANGES: dict[str, Change] = {
    "jpeg 90": lambda image: saved(image, 90),
    "jpeg 70": lambda image: saved(image, 70),
    "jpeg 50": lambda image: saved(image, 50),
    "half": lambda image: scaled(image, 0.5),
    "one and a half": lambda image: scaled(image, 1.5),
    "squeezed": lambda image: image.resize((image.width * 3 // 4, image.height)),
    "brighter": lambda image: lit(image, 1, 0.15),
    "darker": lambda image: lit(image, 1, -0.15),
    "more contrast": lambda image: lit(image, 1.15, 0),
    "less contrast": lambda image: lit(image, 0.85, 0),
    "cropped in the middle": lambda image: cropped(image, 0.5, 0.5),
    "cropped at a corner": lambda image: cropped(image, 0, 0),
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "transverse": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    "flipped, cropped, jpeg 60": lambda image: saved(cropped(ImageOps.flip(image), 1, 1), 60),
}


def scene(seed: int) -> Image.Image:
    """Smooth blobs and fine grain, as tissue has; no two alike."""
    rng = np.random.default_rng(seed)
    blobs = gaussian_filter(rng.normal(size=(120, 160)), 6) * 700
    grain = gaussian_filter(rng.normal(size=(120, 160)), 1.5) * 120
    grey = (blobs + grain + 128).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def shrunk(image: Image.Image) -> np.ndarray:
    return thumbnail(np.array(image))


@pytest.fixture(scope="module")
def scenes() -> dict[str, Image.Image]:
    return {f"s{seed:02}": scene(seed) for seed in range(40)}


def pairs(twins: list[Twin]) -> list[tuple[str, str]]:
    return [(twin.first, twin.second) for twin in twins]


def test_different_images_are_no_twins(scenes: dict[str, Image.Image]) -> None:
    assert find_twins({name: shrunk(image) for name, image in scenes.items()}) == []


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_changed_copy_is_found_and_nothing_else(
    scenes: dict[str, Image.Image], change: str
) -> None:
    images = scenes | {"t07": CHANGES[change](scenes["s07"])}
    twins = find_twins({name: shrunk(image) for name, image in images.items()})
    assert pairs(twins) == [("s07", "t07")]


@pytest.mark.parametrize("turn", range(8))
def test_turn_lays_the_first_of_a_pair_on_the_second(
    scenes: dict[str, Image.Image], turn: int
) -> None:
    square = shrunk(scenes["s03"])
    for first, second in (("a", "b"), ("b", "a")):
        found = find_twins({first: square, second: turned(square, turn)})
        assert pairs(found) == [("a", "b")]
        thumbnail_of = {first: square, second: turned(square, turn)}
        assert (turned(thumbnail_of["a"], found[0].turn) == thumbnail_of["b"]).all()
        assert found[0].correlation == pytest.approx(1, abs=1e-5)


def test_one_dark_blob_on_smooth_skin_does_not_make_twins() -> None:
    """Lesions of one size on grainy skin, which correlate by 0.85 and more as they are."""
    y, x = np.mgrid[-1:1:120j, -1:1:160j]
    blob = 120 / (1 + np.exp((np.hypot(x, y) - 0.2) * 40))
    lesions = {}
    for seed in range(20):
        grain = gaussian_filter(np.random.default_rng(seed).normal(size=(120, 160)), 1.5) * 15
        grey = (200 - blob + grain).clip(0, 255).astype(np.uint8)
        lesions[str(seed)] = shrunk(Image.fromarray(grey).convert("RGB"))
    flat = np.array([one.ravel() for one in lesions.values()], np.float64)
    assert np.corrcoef(flat).min() > 0.85
    assert find_twins(lesions) == []


def test_plain_images_are_nobodys_twins() -> None:
    plain = {str(grey): np.full((48, 48), grey, np.uint8) for grey in (0, 1, 128)}
    assert find_twins(plain) == []


def test_nothing_and_one_image_have_no_twins() -> None:
    assert find_twins({}) == []
    assert find_twins({"a": shrunk(scene(0))}) == []


def test_many_copies_of_one_image_are_all_tied(scenes: dict[str, Image.Image]) -> None:
    copies = {f"c{quality}": shrunk(saved(scenes["s05"], quality)) for quality in range(50, 90)}
    found = find_twins(copies)
    reached = {"c50"}
    while more := {n for pair in pairs(found) if reached & {*pair} for n in pair} - reached:
        reached |= more
    assert reached == copies.keys()


def test_deep_image_has_the_thumbnail_of_its_eight_bits() -> None:
    grey = np.asarray(scene(1).convert("L"))
    deep = thumbnail(grey.astype(np.uint16) * 16)
    spread = grey.astype(np.float64) * 255 / grey.max()
    shallow = thumbnail(np.repeat(spread.round().astype(np.uint8)[..., None], 3, 2))
    assert np.abs(deep.astype(int) - shallow).max() <= 1


def test_progress_ends_with_all_images(scenes: dict[str, Image.Image]) -> None:
    seen: list[tuple[int, int]] = []
    thumbnail_of = {name: shrunk(image) for name, image in scenes.items()}
    find_twins(thumbnail_of, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)


def pictures(assets: Path, name: str) -> Iterator[tuple[str, str, Image.Image]]:
    """sample_id, group_id and image of each sample of a real data set."""
    layout = layout_named(name)
    for entry in scan_layout(find_home(assets / "data" / name, layout), layout).entries:
        with Image.open(entry.image) as image:
            yield entry.sample_id, entry.group_id, image.convert("RGB")


@pytest.mark.parametrize("name", ["busi", "glas", "ham10000"])
def test_changed_copies_of_real_images_are_found(assets: Path, name: str) -> None:
    """48 images among all of their data set, three of them changed in each way."""
    images = {sample: image for sample, _, image in pictures(assets, name)}
    thumbnail_of = {sample: shrunk(image) for sample, image in images.items()}
    chosen = sorted(images)[:: len(images) // 47][:48]
    wanted = set()
    for place, sample in enumerate(chosen):
        change = list(CHANGES)[place % len(CHANGES)]
        thumbnail_of[f"~{sample}"] = shrunk(CHANGES[change](images[sample]))
        wanted.add((sample, f"~{sample}"))
    found = set(pairs(find_twins(thumbnail_of)))
    assert len(wanted & found) >= 46


def test_no_twins_of_ham10000_are_of_two_lesions(assets: Path) -> None:
    """The metadata say which images show one lesion: at least 18 pairs, and none of two."""
    group_of, thumbnail_of = {}, {}
    for sample, group, image in pictures(assets, "ham10000"):
        group_of[sample], thumbnail_of[sample] = group, shrunk(image)
    found = pairs(find_twins(thumbnail_of))
    assert len(found) >= 18
    assert all(group_of[one] == group_of[other] for one, other in found)
