"""What ends up in a manifest, what is kept out of it, and how it is stored."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pipeline.archive import build_manifest
from pipeline.archive.checks import IngestError
from pipeline.errors import InputError, UsageError
from pipeline.manifest import SCHEMA, Manifest

COUNT = 10


def grey(seed: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    """An image of its own for each seed; size is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8)
    return Image.fromarray(pixels)


def mask(size: tuple[int, int] = (8, 6)) -> Image.Image:
    """Foreground in the left half."""
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[:, : size[0] // 2] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Ten sound pairs, s0 … s9, 8 × 6 pixels."""
    root = tmp_path / "archive"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(COUNT):
        grey(number).save(root / "images" / f"s{number}.png")
        mask().save(root / "masks" / f"s{number}.png")
    return root


def splits_of(manifest: Manifest) -> dict[str, str]:
    return dict(manifest.frame.select("sample_id", "split").rows())


def split_file(path: Path, splits: dict[str, str]) -> Path:
    lines = [f"{name},{split}" for name, split in splits.items()]
    path.write_text("\n".join(["sample_id,split", *lines]), encoding="utf-8")
    return path


def test_row_says_what_the_files_hold(archive: Path) -> None:
    manifest = build_manifest(archive, "pairs", name="mine").manifest
    assert manifest.frame.columns == list(SCHEMA)
    assert manifest.frame["sample_id"].to_list() == [f"s{number}" for number in range(COUNT)]
    row = manifest.frame.row(0, named=True)
    image, only = archive / "images" / "s0.png", archive / "masks" / "s0.png"
    assert row.pop("split") in ("train", "val", "test")
    assert row == {
        "sample_id": "s0",
        "dataset": "mine",
        "group_id": "s0",
        "class": None,
        "image": "images/s0.png",
        "masks": ["masks/s0.png"],
        "height": 6,
        "width": 8,
        "image_sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
        "mask_sha256": hashlib.sha256(only.read_bytes()).hexdigest(),
        "foreground_fraction": 0.5,
        "twin_group": "s0",
        "fold": None,
    }
    assert manifest.image_path(manifest.frame.row(0, named=True)) == image
    assert manifest.mask_paths(manifest.frame.row(0, named=True)) == [only]


def test_several_masks_are_united_and_hashed_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "benign"
    folder.mkdir()
    grey(0).save(folder / "benign (1).png")
    mask().save(folder / "benign (1)_mask.png")
    mask().rotate(180).save(folder / "benign (1)_mask_1.png")
    row = build_manifest(tmp_path, "busi").manifest.frame.row(0, named=True)
    assert row["masks"] == ["benign/benign (1)_mask.png", "benign/benign (1)_mask_1.png"]
    assert row["foreground_fraction"] == 1.0
    content = b"".join((tmp_path / path).read_bytes() for path in row["masks"])
    assert row["mask_sha256"] == hashlib.sha256(content).hexdigest()


def test_size_is_that_of_the_upright_image(archive: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey(0, (6, 8)).save(archive / "images" / "s0.png", exif=exif)
    row = build_manifest(archive, "pairs").manifest.frame.row(0, named=True)
    assert (row["width"], row["height"]) == (8, 6)


def test_sixteen_bit_and_palette_images_simply_work(archive: Path) -> None:
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    Image.fromarray(deep).save(archive / "images" / "s0.png")
    grey(99).convert("P").save(archive / "images" / "s1.png")
    mask().convert("P").save(archive / "masks" / "s1.png")
    assert build_manifest(archive, "pairs").quarantined == ()


def missing_mask(root: Path) -> str:
    (root / "masks" / "s3.png").unlink()
    return "no-mask"


def orphan_mask(root: Path) -> str:
    (root / "images" / "s3.png").unlink()
    return "no-image"


def truncated_png(root: Path) -> str:
    path = root / "images" / "s3.png"
    path.write_bytes(path.read_bytes()[:60])
    return "unreadable"


def text_for_an_image(root: Path) -> str:
    (root / "images" / "s3.png").write_text("not an image")
    return "unreadable"


def mask_of_another_size(root: Path) -> str:
    mask((6, 8)).save(root / "masks" / "s3.png")
    return "size"


def mask_with_three_values(root: Path) -> str:
    grey(3).save(root / "masks" / "s3.png")
    return "mask-values"


def animated_gif(root: Path) -> str:
    (root / "images" / "s3.png").unlink()
    frames = [grey(seed) for seed in (3, 4)]
    frames[0].save(root / "images" / "s3.gif", save_all=True, append_images=frames[1:])
    return "multi-frame"


def two_images_with_one_stem(root: Path) -> str:
    grey(50).save(root / "images" / "s3.bmp")
    return "same-stem"


FAULTS = (
    missing_mask,
    orphan_mask,
    truncated_png,
    text_for_an_image,
    mask_of_another_size,
    mask_with_three_values,
    animated_gif,
    two_images_with_one_stem,
)


@pytest.mark.parametrize("spoil", FAULTS)
def test_fault_is_reported_with_file_and_fix(archive: Path, spoil: Callable[[Path], str]) -> None:
    kind = spoil(archive)
    with pytest.raises(IngestError, match="1 of 10 samples") as caught:
        build_manifest(archive, "pairs")
    assert [fault.kind for fault in caught.value.faults] == [kind]
    assert "/s3." in caught.value.message
    assert "--skip-bad" in caught.value.fix
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("spoil", FAULTS)
def test_skip_bad_leaves_the_sample_out_by_name(
    archive: Path, spoil: Callable[[Path], str]
) -> None:
    kind = spoil(archive)
    ingest = build_manifest(archive, "pairs", skip_bad=True)
    assert [(fault.kind, fault.sample_id) for fault in ingest.quarantined] == [(kind, "s3")]
    others = [f"s{number}" for number in range(COUNT) if number != 3]
    assert ingest.manifest.frame["sample_id"].to_list() == others


def test_all_faults_are_reported_at_once(archive: Path) -> None:
    (archive / "masks" / "s0.png").unlink()
    (archive / "images" / "s1.png").write_text("text")
    mask((4, 4)).save(archive / "masks" / "s2.png")
    file = split_file(archive / "s.csv", {f"s{n}": "train" for n in range(9)} | {"z": "test"})
    with pytest.raises(IngestError, match="4 of 10 samples") as caught:
        build_manifest(archive, "pairs", split_file=file)
    kinds = {fault.kind: fault.sample_id for fault in caught.value.faults}
    assert kinds == {
        "no-mask": "s0",
        "unreadable": "s1",
        "size": "s2",
        "unnamed": "s9",
        "unknown-name": "z",
    }
    assert caught.value.names == ("z",)


def test_long_lists_are_cut_but_counted(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(30):
        (tmp_path / "images" / f"{number:02}.png").touch()
    with pytest.raises(IngestError, match="and 10 more") as caught:
        build_manifest(tmp_path, "pairs")
    assert len(caught.value.faults) == 30
    assert "images/19.png" in caught.value.message
    assert "images/20.png" not in caught.value.message


def test_nothing_left_is_an_error_even_when_skipping(archive: Path) -> None:
    shutil.rmtree(archive / "masks")
    (archive / "masks").mkdir()
    with pytest.raises(InputError, match="no sample is left"):
        build_manifest(archive, "pairs", skip_bad=True)


def test_published_split_is_followed_and_val_is_held_out(archive: Path) -> None:
    published = {f"s{n}": "test" if n < 2 else "train" for n in range(COUNT)}
    file = split_file(archive / "s.csv", published)
    built = build_manifest(archive, "pairs", split_file=file, val_fraction=0.25).manifest
    splits = splits_of(built)
    assert [name for name, split in splits.items() if split == "test"] == ["s0", "s1"]
    assert sorted(splits.values()) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2
    assert built.settings == {
        "split": "s.csv",
        "val_fraction": "0.25",
        "seed": "0",
        "twins": "found at 0.75",
    }


def test_skip_bad_leaves_out_unknown_and_unnamed_by_name(archive: Path) -> None:
    file = split_file(
        archive / "s.csv", {f"s{n}": "train" for n in range(1, COUNT)} | {"z": "test"}
    )
    ingest = build_manifest(archive, "pairs", split_file=file, skip_bad=True)
    assert [(fault.kind, fault.sample_id) for fault in ingest.quarantined] == [
        ("unknown-name", "z"),
        ("unnamed", "s0"),
    ]
    assert ingest.manifest.frame.height == 9
    assert "no sample is in test" in ingest.notes


def test_sample_ids_that_are_one_to_a_split_file_are_a_fault(archive: Path) -> None:
    for folder, image in (("images", grey(70)), ("masks", mask())):
        image.save(archive / folder / "s (0).png")
        (archive / folder / "s1.png").rename(archive / folder / "s_0.png")
    named = {f"s{n}": "train" for n in range(COUNT) if n != 1} | {"s_0": "test"}
    with pytest.raises(IngestError, match=r"s \(0\), s_0") as caught:
        build_manifest(archive, "pairs", split_file=split_file(archive / "s.csv", named))
    assert {fault.kind for fault in caught.value.faults} == {"same-name"}
    assert build_manifest(archive, "pairs").manifest.frame.height == COUNT + 1


def test_identical_images_are_never_drawn_apart(archive: Path) -> None:
    for number in range(1, 5):
        shutil.copy(archive / "images" / "s0.png", archive / "images" / f"s{number}.png")
    for seed in range(6):
        ingest = build_manifest(archive, "pairs", seed=seed, split=(0.5, 0.5), val_fraction=0.3)
        splits = splits_of(ingest.manifest)
        assert len({splits[f"s{number}"] for number in range(5)}) == 1
        assert "identical images, in one split: s0, s1, s2, s3, s4" in ingest.notes


def test_identical_images_in_two_published_splits_are_a_fault(archive: Path) -> None:
    shutil.copy(archive / "images" / "s0.png", archive / "images" / "s1.png")
    published = {f"s{n}": "test" if n < 1 else "train" for n in range(COUNT)}
    file = split_file(archive / "s.csv", published)
    with pytest.raises(IngestError, match=r"s0 \(test\), s1 \(train\)"):
        build_manifest(archive, "pairs", split_file=file, val_fraction=0)
    ingest = build_manifest(archive, "pairs", split_file=file, skip_bad=True)
    assert [(fault.kind, fault.sample_id) for fault in ingest.quarantined] == [("duplicate", "s1")]
    assert splits_of(ingest.manifest)["s0"] == "test"


def test_split_and_split_file_exclude_each_other(archive: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        build_manifest(archive, "pairs", split=(0.8, 0.2), split_file=archive / "s.csv")


def test_digest_leaves_split_and_place_out_and_takes_content_in(
    archive: Path, tmp_path: Path
) -> None:
    first = build_manifest(archive, "pairs").manifest
    assert build_manifest(archive, "pairs", seed=7).manifest.digest == first.digest
    moved = shutil.move(archive, tmp_path / "elsewhere")
    assert build_manifest(moved, "pairs").manifest.digest == first.digest
    grey(500).save(Path(moved) / "images" / "s0.png")
    assert build_manifest(moved, "pairs").manifest.digest != first.digest


def test_progress_counts_every_sample(archive: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_manifest(archive, "pairs", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (COUNT, COUNT)
    assert seen == sorted(seen)


def test_glas_keeps_its_official_split_and_patients_of_train_together(assets: Path) -> None:
    ingest = build_manifest(assets / "data" / "glas", "glas")
    frame = ingest.manifest.frame
    test = pl.col("split") == "test"
    assert (frame.filter(~test).height, frame.filter(test).height) == (85, 80)
    patients = frame.filter(~test).group_by("group_id").agg(pl.col("split").n_unique())
    assert patients["split"].max() == 1
    assert ingest.manifest.labels
    assert abs(frame["foreground_fraction"].mean() - 0.507) < 0.01  # as its provider measured
    assert ingest.notes == ("11 of 16 groups stand in several splits (official)",)


def test_no_lesion_of_ham10000_stands_in_two_splits(assets: Path) -> None:
    frame = build_manifest(assets / "data" / "ham10000", "ham10000").manifest.frame
    assert frame.height == 2500
    assert frame.group_by("group_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert dict(frame["split"].value_counts().rows()) == {"train": 1800, "val": 200, "test": 500}
