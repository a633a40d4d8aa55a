"""Twins, folds, windows and colours: from an archive's files into its manifest."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from pipeline.archive import Ingest, build_manifest
from pipeline.archive.checks import IngestError
from pipeline.archive.notes import count_twins
from pipeline.archive.twin_sheet import choose_twins, draw_twins
from pipeline.errors import InputError, UsageError
from pipeline.images.sheet import CAPTION_PX, GAP_PX

COUNT = 20


def scene(seed: int) -> Image.Image:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(60, 80)), 2)
    return Image.fromarray((noise * 400 + 128).clip(0, 255).astype(np.uint8))


def write_pair(root: Path, name: str, image: Image.Image, mask: Image.Image | None = None) -> None:
    half = np.zeros(image.size[::-1], np.uint8)
    half[:, : image.width // 2] = 255
    for folder, picture in (("images", image), ("masks", mask or Image.fromarray(half))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        picture.save(root / folder / f"{name}.png")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """s00 … s19; s10 is s00 mirrored, s11 is s01 cropped, and s12 is s10 brightened."""
    root = tmp_path / "archive"
    for number in range(COUNT):
        write_pair(root, f"s{number:02}", scene(number))
    mirrored = ImageOps.mirror(scene(0))
    write_pair(root, "s10", mirrored)
    write_pair(root, "s11", scene(1).resize((80, 60), box=(0, 0, 77, 58)))
    write_pair(root, "s12", mirrored.point([min(level + 20, 255) for level in range(256)]))
    return root


def split_file(root: Path, test: set[int]) -> Path:
    rows = [f"s{n:02},{'test' if n in test else 'train'}" for n in range(COUNT)]
    path = root / "s.csv"
    path.write_text("\n".join(["sample_id,split", *rows]))
    return path


def column(ingest: Ingest, name: str) -> dict[str, object]:
    return dict(ingest.manifest.frame.select("sample_id", name).rows())


def test_twins_share_the_least_of_their_names(archive: Path) -> None:
    ingest = build_manifest(archive, "pairs")
    group = column(ingest, "twin_group")
    tied = {"s00": "s00", "s10": "s00", "s12": "s00", "s01": "s01", "s11": "s01"}
    assert group == {name: name for name in group} | tied
    counted = count_twins(ingest.manifest.frame)
    assert (counted["groups"], counted["samples"]) == (2, 5)


def test_twins_are_never_drawn_apart(archive: Path) -> None:
    apart = 0
    for seed in range(8):
        drawn = {"split": (0.5, 0.5), "val_fraction": 0.3, "seed": seed}
        split = column(build_manifest(archive, "pairs", **drawn), "split")
        assert len({split[name] for name in ("s00", "s10", "s12")}) == 1
        assert split["s01"] == split["s11"]
        alone = column(build_manifest(archive, "pairs", **drawn, twins=False), "split")
        apart += len({alone[name] for name in ("s00", "s10", "s12")}) > 1
    assert apart


def test_published_split_that_tears_twins_apart_is_kept_and_told(archive: Path) -> None:
    file = split_file(archive, test={10, 11, 15, 16})
    ingest = build_manifest(archive, "pairs", split_file=file, val_fraction=0.0)
    split = column(ingest, "split")
    assert [name for name in split if split[name] == "test"] == ["s10", "s11", "s15", "s16"]
    assert "2 of 4 test images have a twin in train" in ingest.notes
    across = {"test-train": 2, "val-train": 0, "test-val": 0}
    assert count_twins(ingest.manifest.frame)["across_splits"] == across


def test_val_is_held_out_of_a_published_train_by_whole_twins(archive: Path) -> None:
    file = split_file(archive, test={15, 16})
    for seed in range(8):
        kwargs = {"split_file": file, "val_fraction": 0.5, "seed": seed}
        split = column(build_manifest(archive, "pairs", **kwargs), "split")
        assert len({split[name] for name in ("s00", "s10", "s12")}) == 1


def test_without_looking_every_sample_is_its_own_twin(archive: Path) -> None:
    ingest = build_manifest(archive, "pairs", twins=False)
    frame = ingest.manifest.frame
    assert frame["twin_group"].to_list() == frame["sample_id"].to_list()
    assert ingest.twins is None
    assert ingest.manifest.settings["twins"] == "not looked for"


def test_twin_that_is_left_out_ties_nothing(archive: Path) -> None:
    (archive / "masks" / "s10.png").unlink()
    (archive / "masks" / "s00.png").unlink()
    group = column(build_manifest(archive, "pairs", skip_bad=True), "twin_group")
    assert group["s12"] == "s12"


def test_twin_that_the_split_does_not_name_ties_nothing(archive: Path) -> None:
    file = split_file(archive, test={15})
    file.write_text(file.read_text().replace("s00,train\n", ""))
    ingest = build_manifest(archive, "pairs", split_file=file, skip_bad=True)
    assert "s00" not in column(ingest, "twin_group")
    assert column(ingest, "twin_group")["s12"] == "s10"
    assert all(twin.first != "s00" for twin in ingest.twins)


def test_sheet_shows_the_pairs_of_two_splits_and_else_all(archive: Path) -> None:
    file = split_file(archive, test={11})
    ingest = build_manifest(archive, "pairs", split_file=file, val_fraction=0)
    chosen = choose_twins(ingest.manifest, ingest.twins)
    assert [(twin.first, twin.second) for twin in chosen] == [("s01", "s11")]
    together = build_manifest(archive, "pairs", split=(1, 0), val_fraction=0)
    assert len(choose_twins(together.manifest, together.twins)) == 4


def test_sheet_lays_a_turned_twin_on_its_other(archive: Path) -> None:
    ingest = build_manifest(archive, "pairs")
    mirrored = [twin for twin in ingest.twins if (twin.first, twin.second) == ("s00", "s10")]
    sheet = np.asarray(draw_twins(ingest.manifest, mirrored).convert("L"), np.float64)
    side = sheet.shape[0] - 2 * GAP_PX - CAPTION_PX
    body = sheet[GAP_PX + CAPTION_PX : -GAP_PX]
    left = body[:, GAP_PX : GAP_PX + side]
    right = body[:, 2 * GAP_PX + side : 2 * GAP_PX + 2 * side]
    assert left.std() > 10
    assert np.abs(left - right).max() <= 2


@pytest.mark.parametrize("split", [(0.8, 0.2), (1, 0)], ids=str)
def test_folds_deal_train_and_leave_val_and_test_apart(
    archive: Path, split: tuple[float, float]
) -> None:
    ingest = build_manifest(archive, "pairs", split=split, folds=4)
    frame = ingest.manifest.frame
    apart, rest = frame.filter(pl.col("split") != "train"), frame.filter(split="train")
    plain = build_manifest(archive, "pairs", split=split).manifest.frame
    assert frame["split"].equals(plain["split"])
    assert "val" in set(apart["split"])
    assert apart["fold"].null_count() == apart.height
    assert rest["fold"].null_count() == 0
    sizes = rest["fold"].value_counts()["count"]
    assert sizes.len() == 4
    assert sizes.max() - sizes.min() <= 1
    assert rest.group_by("twin_group").agg(pl.col("fold").n_unique())["fold"].max() == 1


def test_folds_leave_a_published_val_as_it_is(archive: Path) -> None:
    rows = [f"s{n:02},{('train', 'val', 'test')[n % 3]}" for n in range(COUNT)]
    (archive / "s.csv").write_text("\n".join(["sample_id,split", *rows]))
    frame = build_manifest(archive, "pairs", split_file=archive / "s.csv", folds=2).manifest.frame
    assert frame.filter(split="val").height == 7
    assert frame["fold"].null_count() == frame.filter(pl.col("split") != "train").height == 13


def test_folds_change_no_digest(archive: Path) -> None:
    plain = build_manifest(archive, "pairs", twins=False).manifest
    assert build_manifest(archive, "pairs", folds=3).manifest.digest == plain.digest


def deepen(archive: Path, number: int, factor: int) -> None:
    deep = np.asarray(scene(number)).astype(np.uint16) * factor
    Image.fromarray(deep).save(archive / "images" / f"s{number:02}.png")


def test_window_is_that_of_the_whole_data_set(archive: Path) -> None:
    deepen(archive, 3, 16)  # up to 4080: 12 bits
    deepen(archive, 4, 2)  # up to 510: 10 bits, if it were alone
    ingest = build_manifest(archive, "pairs")
    highest = 16 * int(np.asarray(scene(3)).max())
    assert ingest.manifest.window == (0, 4095)
    words = f"2 images of 16 bits, highest value {highest}: 0 is black, 4095 white"
    assert words in ingest.notes


def test_window_may_be_given(archive: Path) -> None:
    deepen(archive, 3, 16)
    assert build_manifest(archive, "pairs", window=(10, 900)).manifest.window == (10, 900)
    assert build_manifest(archive, "pairs", window=(0, 65535)).manifest.window is None


def test_full_range_and_eight_bits_have_no_window(archive: Path) -> None:
    assert build_manifest(archive, "pairs").manifest.window is None
    deepen(archive, 3, 257)
    assert build_manifest(archive, "pairs").manifest.window is None


def test_twins_are_found_across_depths(archive: Path) -> None:
    deepen(archive, 10, 16)
    write_pair(archive, "s15", scene(10))
    assert column(build_manifest(archive, "pairs"), "twin_group")["s15"] == "s10"


def coloured(number: int) -> Image.Image:
    mask = np.zeros((60, 80, 3), np.uint8)
    mask[:30] = (255, 0, 0)
    mask[30 : 30 + number] = (0, 255, 0)
    return Image.fromarray(mask)


def test_foreground_colour_reaches_the_manifest(archive: Path) -> None:
    for number in range(COUNT):
        write_pair(archive, f"s{number:02}", scene(number), coloured(number + 1))
    with pytest.raises(IngestError, match=r"#00ff00 \(80 px\)"):
        build_manifest(archive, "pairs")
    manifest = build_manifest(archive, "pairs", foreground="lime").manifest
    assert manifest.foreground == "#00ff00"
    assert manifest.frame["foreground_fraction"][:2].to_list() == [1 / 60, 2 / 60]
    with pytest.raises(InputError, match="no mask has a pixel of the colour #0000ff"):
        build_manifest(archive, "pairs", foreground="blue")


def test_foreground_does_not_fit_labels(archive: Path) -> None:
    with pytest.raises(UsageError, match="hold labels"):
        build_manifest(archive, "glas", foreground="red")


def inside_out(archive: Path, *numbers: int) -> list[float]:
    """Masks of one rectangle each, some drawn inside out; their true shares of the image."""
    shares = []
    for number in range(COUNT):
        mask = np.zeros((60, 80), np.uint8)
        mask[20:40, 30 : 31 + number] = 255
        shares.append((mask > 0).mean())
        drawn = 255 - mask if number in numbers else mask
        write_pair(archive, f"s{number:02}", scene(number), Image.fromarray(drawn))
    return shares


def test_masks_that_are_drawn_inside_out_are_named(archive: Path) -> None:
    inside_out(archive, 3, 7)
    ingest = build_manifest(archive, "pairs")
    assert ingest.inside_out == ("s03", "s07")
    assert any("2 masks are drawn inside out" in n and "s03, s07" in n for n in ingest.notes)
    assert any("--foreground enclosed turns them" in note for note in ingest.notes)


def test_sound_masks_are_not_called_inside_out(archive: Path) -> None:
    ingest = build_manifest(archive, "pairs")
    assert ingest.inside_out == ()
    assert not any("inside out" in note for note in ingest.notes)


def test_enclosed_foreground_turns_those_that_are_drawn_inside_out(archive: Path) -> None:
    shares = inside_out(archive, 3, 7)
    ingest = build_manifest(archive, "pairs", foreground="enclosed")
    assert ingest.manifest.frame["foreground_fraction"].to_list() == pytest.approx(shares)
    assert ingest.manifest.mask_values == "enclosed"
    assert ingest.inside_out == ("s03", "s07")
    assert any("2 masks are drawn inside out and turned: s03, s07" in note for note in ingest.notes)


def test_labels_are_never_called_inside_out(assets: Path) -> None:
    """Glands may stand all round a lumen."""
    ingest = build_manifest(assets / "data/glas", "glas", twins=False)
    assert max(ingest.manifest.frame["foreground_fraction"]) > 0.8
    assert ingest.inside_out == ()


def test_masks_of_skin_that_are_drawn_inside_out_are_found(assets: Path) -> None:
    """The 92 masks up to ISIC_0024714 were looked at: 90 are inside out, the border cuts two."""
    ingest = build_manifest(assets / "data/ham10000", "ham10000", twins=False)
    assert len(ingest.inside_out) == 88
    assert ingest.inside_out[0] == "ISIC_0024317"
    assert ingest.inside_out[-1] == "ISIC_0024714"
