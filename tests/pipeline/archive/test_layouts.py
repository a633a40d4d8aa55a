"""What each layout finds in an archive, and how a folder that does not fit is answered."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from object_store import Server, upload
from PIL import Image

from pipeline.archive import build_manifest
from pipeline.archive.layouts import LAYOUTS, find_home, layout_named, scan_layout
from pipeline.archive.pairing import Scan
from pipeline.errors import InputError, UsageError
from pipeline.images.files import SUFFIXES

METADATA = "lesion_id,image_id,dx\nHAM_1,ISIC_1,nv\nHAM_1,ISIC_2,nv\nHAM_2,ISIC_3,mel\n"
GRADES = "name,patient ID, grade (GlaS), grade (S)\rtrain_1,4, benign, x\rtestA_1,4, malignant, y\r"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def busi(root: Path) -> Path:
    folders = ("benign", "malignant", "normal")
    for name in folders:
        touch(root / name, f"{name} (1).png", f"{name} (1)_mask.png")
    return touch(root / "benign", "benign (1)_mask_1.png").parent


def bus(root: Path) -> Path:
    return touch(root, "original/000001.png", "GT/000001.png")


def glas(root: Path) -> Path:
    touch(root, "train_1.bmp", "train_1_anno.bmp", "testA_1.bmp", "testA_1_anno.bmp")
    (root / "Grade.csv").write_bytes(GRADES.encode())
    return root


def ham10000(root: Path) -> Path:
    touch(root, "HAM10000_images_part_1/ISIC_1.jpg", "HAM10000_images_part_2/ISIC_3.jpg")
    masks = root / "HAM10000_segmentations_lesion_tschandl"
    touch(masks, "ISIC_1_segmentation.png", "ISIC_3_segmentation.png")
    (root / "HAM10000_metadata").write_text(METADATA)
    return root


def kvasir(root: Path) -> Path:
    touch(root, "images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png")
    (root / "train.txt").write_text("a\n")
    (root / "test.txt").write_text("b\n")
    return root


def gms(root: Path) -> Path:
    touch(root, "images/x_1.png", "images/x_2.png", "masks/x_1.png", "masks/x_2.png")
    named = {"train": {"name_list": ["x_1"]}, "test": {"name_list": ["x_2"]}}
    (root / "x_train_test_names.pkl").write_bytes(pickle.dumps(named))
    return root


def pairs(root: Path) -> Path:
    return touch(root, "images/a.jpg", "masks/a.tif")


ARCHIVES: dict[str, Callable[[Path], Path]] = {
    "busi": busi,
    "bus": bus,
    "glas": glas,
    "ham10000": ham10000,
    "kvasir-instrument": kvasir,
    "gms": gms,
    "pairs": pairs,
}


def scan(root: Path, name: str, include_normal: bool = False, mask_suffix: str = "") -> Scan:
    layout = layout_named(name)
    home = find_home(root, layout)
    return scan_layout(home, layout, include_normal=include_normal, mask_suffix=mask_suffix)


def test_every_layout_is_tested_here() -> None:
    assert list(ARCHIVES) == list(LAYOUTS)


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive_is_found_from_its_own_folder_and_from_the_one_above(
    tmp_path: Path, name: str
) -> None:
    home = ARCHIVES[name](tmp_path / "above" / "archive")
    touch(tmp_path / "above", "SOURCE.txt", "__MACOSX/.hidden")
    assert find_home(home, layout_named(name)) == home
    assert find_home(home.parent, layout_named(name)) == home


@pytest.mark.parametrize("name", ARCHIVES)
def test_folder_of_another_layout_is_answered_with_its_name(tmp_path: Path, name: str) -> None:
    home = ARCHIVES[name](tmp_path)
    wrong = "bus" if name != "bus" else "busi"
    with pytest.raises(InputError, match=f"not laid out as {wrong}") as caught:
        find_home(home, layout_named(wrong))
    assert caught.value.fix == f"--layout {name}"


@pytest.mark.parametrize("name", ARCHIVES)
def test_empty_folder_is_answered_with_what_was_expected(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="found an empty folder") as caught:
        find_home(tmp_path, layout_named(name))
    assert layout_named(name).archive in caught.value.message


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive_on_s3_is_that_of_its_files_on_disk(s3: Server, tmp_path: Path, name: str) -> None:
    home = ARCHIVES[name](tmp_path / "above (1)" / "archive #1")
    for number, path in enumerate(sorted(home.rglob("*.*"))):
        if path.suffix in SUFFIXES:
            pixels = np.random.default_rng(number).integers(0, 2, (6, 8), np.uint8)
            Image.fromarray(255 * pixels).save(path)
    url = upload(tmp_path / "above (1)", f"{s3.bucket}/{name}")
    near, far = (
        build_manifest(root, name, val_fraction=0.0, twins=False)
        for root in (tmp_path / "above (1)", url)
    )
    assert far.manifest.frame.equals(near.manifest.frame)
    assert far.notes == near.notes
    assert str(far.manifest.root) == f"{url}/archive #1"


def test_missing_folder_and_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").touch()
    with pytest.raises(InputError, match="no such folder"):
        find_home(tmp_path / "nowhere", layout_named("busi"))
    with pytest.raises(InputError, match="is a file"):
        find_home(tmp_path / "archive.zip", layout_named("busi"))


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="no image found"):
        scan(tmp_path, "pairs")


def test_busi_unites_masks_and_leaves_normal_out(tmp_path: Path) -> None:
    found = scan(busi(tmp_path), "busi")
    assert [entry.sample_id for entry in found.entries] == ["benign (1)", "malignant (1)"]
    assert [mask.name for mask in found.entries[0].masks] == [
        "benign (1)_mask.png",
        "benign (1)_mask_1.png",
    ]
    assert [entry.sample_class for entry in found.entries] == ["benign", "malignant"]
    assert found.faults == ()


def test_busi_takes_normal_when_asked(tmp_path: Path) -> None:
    found = scan(busi(tmp_path), "busi", include_normal=True)
    assert [entry.sample_class for entry in found.entries] == ["benign", "malignant", "normal"]


def test_bus_pairs_original_with_gt(tmp_path: Path) -> None:
    (entry,) = scan(bus(tmp_path), "bus").entries
    assert entry.image == tmp_path / "original" / "000001.png"
    assert entry.masks == (tmp_path / "GT" / "000001.png",)
    assert entry.group_id == entry.sample_id == "000001"
    assert entry.sample_class is None


def test_glas_reads_patient_grade_and_split(tmp_path: Path) -> None:
    found = scan(glas(tmp_path), "glas")
    facts = [(e.sample_id, e.group_id, e.sample_class) for e in found.entries]
    assert facts == [("testA_1", "4", "malignant"), ("train_1", "4", "benign")]
    official = layout_named("glas").official(tmp_path)
    assert official == {"train_1": "train", "testA_1": "test"}
    assert layout_named("glas").labels


def test_glas_notes_images_of_other_names(tmp_path: Path) -> None:
    touch(glas(tmp_path), "thumb.bmp")
    found = scan(tmp_path, "glas")
    assert found.notes == ("1 images have names of another form: thumb.bmp",)
    assert len(found.entries) == 2


@pytest.mark.parametrize("table", ["HAM10000_metadata", "HAM10000_metadata.csv"])
def test_ham10000_groups_by_lesion_under_either_table_name(tmp_path: Path, table: str) -> None:
    ham10000(tmp_path)
    (tmp_path / "HAM10000_metadata").rename(tmp_path / table)
    found = scan(tmp_path, "ham10000")
    facts = [(e.sample_id, e.group_id, e.sample_class) for e in found.entries]
    assert facts == [("ISIC_1", "HAM_1", "nv"), ("ISIC_3", "HAM_2", "mel")]
    assert found.faults == ()  # ISIC_2 has a row and no image: the copy is partial


def test_image_without_a_row_in_the_table_is_a_fault(tmp_path: Path) -> None:
    ham10000(tmp_path)
    touch(tmp_path, "HAM10000_images_part_1/ISIC_9.jpg")
    touch(tmp_path / "HAM10000_segmentations_lesion_tschandl", "ISIC_9_segmentation.png")
    (fault,) = scan(tmp_path, "ham10000").faults
    assert (fault.kind, fault.file) == ("no-metadata", "HAM10000_images_part_1/ISIC_9.jpg")


@pytest.mark.parametrize(("name", "table"), [("glas", "Grade.csv"), ("ham10000", "HAM10000_meta")])
def test_missing_table_is_refused_by_name(tmp_path: Path, name: str, table: str) -> None:
    ARCHIVES[name](tmp_path)
    next(tmp_path.glob(f"{table}*")).unlink()
    with pytest.raises(InputError, match=f"no {table}"):
        scan(tmp_path, name)


def test_kvasir_reads_its_official_split(tmp_path: Path) -> None:
    found = scan(kvasir(tmp_path), "kvasir-instrument")
    assert [entry.sample_id for entry in found.entries] == ["a", "b"]
    official = layout_named("kvasir-instrument").official(tmp_path)
    assert official == {"a": "train", "b": "test"}


def test_gms_reads_its_pickle_as_official_split(tmp_path: Path) -> None:
    found = scan(gms(tmp_path), "gms")
    assert [entry.sample_id for entry in found.entries] == ["x_1", "x_2"]
    assert layout_named("gms").official(tmp_path) == {"x_1": "train", "x_2": "test"}


def test_gms_with_two_pickles_asks_which(tmp_path: Path) -> None:
    touch(gms(tmp_path), "y_train_test_names.pkl")
    with pytest.raises(InputError, match="2 split files") as caught:
        layout_named("gms").official(tmp_path)
    assert "--split-file" in caught.value.fix


def test_pairs_match_over_formats_and_with_a_suffix(tmp_path: Path) -> None:
    (plain,) = scan(pairs(tmp_path / "plain"), "pairs").entries
    assert plain.masks[0].name == "a.tif"
    touch(tmp_path / "named", "images/a.jpg", "masks/a_mask.png")
    (named,) = scan(tmp_path / "named", "pairs", mask_suffix="_mask").entries
    assert named.sample_id == "a"
    assert named.masks[0].name == "a_mask.png"


def test_orphans_on_both_sides_are_faults(tmp_path: Path) -> None:
    touch(pairs(tmp_path), "images/lonely.png", "masks/ghost.png")
    faults = {(fault.kind, fault.file) for fault in scan(tmp_path, "pairs").faults}
    assert faults == {("no-mask", "images/lonely.png"), ("no-image", "masks/ghost.png")}


def test_two_images_or_two_masks_with_one_stem_are_faults(tmp_path: Path) -> None:
    touch(pairs(tmp_path), "images/a.png", "images/b.png", "masks/b.png", "masks/b.bmp")
    found = scan(tmp_path, "pairs")
    assert found.entries == ()
    assert [(fault.kind, fault.file) for fault in found.faults] == [
        ("same-stem", "images/a.jpg, images/a.png"),
        ("same-stem", "masks/b.bmp, masks/b.png"),
    ]


def test_litter_is_ignored_and_other_files_are_noted(tmp_path: Path) -> None:
    touch(pairs(tmp_path), "images/.DS_Store", "images/Thumbs.db", "images/__MACOSX/a.png")
    assert scan(tmp_path, "pairs").notes == ()
    touch(tmp_path, "images/readme.txt")
    assert scan(tmp_path, "pairs").notes == ("images: 1 entries are not image files: readme.txt",)


@pytest.mark.parametrize("stem", ["with space", 'quote\'s "both"', "Läsion-№1", "乳腺"])
def test_unusual_file_names_are_kept_as_they_are(tmp_path: Path, stem: str) -> None:
    touch(tmp_path, f"images/{stem}.png", f"masks/{stem}.png")
    assert [entry.sample_id for entry in scan(tmp_path, "pairs").entries] == [stem]


def test_option_of_another_layout_is_a_usage_error(tmp_path: Path) -> None:
    home = pairs(tmp_path)
    with pytest.raises(UsageError, match="--include-normal belongs to layout busi"):
        scan(home, "pairs", include_normal=True)
    with pytest.raises(UsageError, match="--mask-suffix belongs to layout pairs"):
        scan(bus(tmp_path / "bus"), "bus", mask_suffix="_mask")
    with pytest.raises(UsageError, match="unknown layout 'bsui'") as caught:
        layout_named("bsui")
    assert "busi" in caught.value.fix


def test_real_archives_hold_what_was_published(assets: Path) -> None:
    """Counts of the publications: BUSI 437 + 210 (+ 133 normal); GlaS 16 patients."""
    lesions = scan(assets / "data" / "busi", "busi")
    assert len(lesions.entries) == 437 + 210
    assert sum(len(entry.masks) > 1 for entry in lesions.entries) == 17
    assert len(scan(assets / "data" / "busi", "busi", include_normal=True).entries) == 780
    patients = {entry.group_id for entry in scan(assets / "data" / "glas", "glas").entries}
    assert patients == {str(number) for number in range(1, 17)}
    skin = scan(assets / "data" / "ham10000", "ham10000")
    assert (len(skin.entries), skin.faults) == (2500, ())
