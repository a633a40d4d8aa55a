"""The data set archives known: how each looks, under what terms, and how its samples are found."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.archive.pairing import Scan, described, pair_by_stem, single_masks
from pipeline.archive.split_files import read_name_lists, read_split_file
from pipeline.errors import InputError, UsageError
from pipeline.images.files import images_in, visible
from pipeline.places import is_folder
from pipeline.telling import some_of


@dataclass(frozen=True)
class Layout:
    """A published archive: how it looks, its terms, and the functions that read it.

    fits       whether a folder is the archive's own
    scan       archive folder → Scan
    official   archive folder → name → split, as published; None where it has none
    labels     whether masks hold object labels, with foreground = label > 0
    """

    name: str
    archive: str
    licence: str
    published: str
    citation: str
    fits: Callable[[Path], bool]
    scan: Callable[..., Scan]
    official: Callable[[Path], dict[str, str] | None] = lambda _home: None
    labels: bool = False


def layout_named(name: str) -> Layout:
    """The layout of that name; raises UsageError with the names known."""
    if name not in LAYOUTS:
        raise UsageError(f"unknown layout {name!r}", f"choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def find_home(root: Path, layout: Layout) -> Path:
    """The archive's own folder: `root`, or the one folder in it that is laid out so.

    raises     InputError that says what was expected and found, and which layout fits instead
    """
    if not is_folder(root):
        message = f"{root}: {'is a file, not a folder' if root.exists() else 'no such folder'}"
        raise InputError(message, "give the folder into which the archive was unpacked")
    if home := _home_of(root, layout):
        return home
    found = some_of(sorted(path.name for path in visible(root))) or "an empty folder"
    others = [other.name for other in LAYOUTS.values() if _home_of(root, other)]
    raise InputError(
        f"{root} is not laid out as {layout.name}: expected {layout.archive}; found {found}",
        f"--layout {others[0]}" if others else "gms-lmm datasets shows every layout known",
    )


def scan_layout(
    home: Path, layout: Layout, *, include_normal: bool = False, mask_suffix: str = ""
) -> Scan:
    """Samples of the archive at `home`, and what is wrong with the rest.

    include_normal  busi only: take the images without a lesion too
    mask_suffix     pairs only: what a mask's stem has after its image's
    raises          UsageError for an option of another layout, InputError when there is no image
    """
    options: dict[str, bool | str] = {}
    if include_normal:
        options["include_normal"] = _only_for("busi", layout, "--include-normal")
    if mask_suffix:
        _only_for("pairs", layout, "--mask-suffix")
        options["mask_suffix"] = mask_suffix
    scan = layout.scan(home, **options)
    if not scan.entries and not scan.faults:
        raise InputError(
            f"{home}: no image found; {layout.name} is {layout.archive}",
            "give the folder into which the archive was unpacked",
        )
    return scan


def _only_for(name: str, layout: Layout, option: str) -> bool:
    if layout.name != name:
        raise UsageError(f"{option} belongs to layout {name}, not {layout.name}", "leave it out")
    return True


def _home_of(root: Path, layout: Layout) -> Path | None:
    if layout.fits(root):
        return root
    inside = [path for path in visible(root) if is_folder(path) and layout.fits(path)]
    return inside[0] if len(inside) == 1 else None


def _has(*folders: str) -> Callable[[Path], bool]:
    return lambda root: all(is_folder(root / folder) for folder in folders)


def _scan_busi(home: Path, include_normal: bool = False) -> Scan:
    classes = ["benign", "malignant"] + ["normal"] * include_normal
    images: list[Path] = []
    masks: dict[Path, str] = {}
    notes: tuple[str, ...] = ()
    for folder in classes:
        files, note = images_in(home / folder)
        notes += note
        for path in files:
            if match := re.fullmatch(r"(.+)_mask(_\d+)?", path.stem):
                masks[path] = match[1]
            else:
                images.append(path)
    scan = pair_by_stem(home, images, masks, notes)
    classed = [replace(entry, sample_class=entry.image.parent.name) for entry in scan.entries]
    return replace(scan, entries=tuple(classed))


def _scan_glas(home: Path) -> Scan:
    files = images_in(home)[0]
    strange = [path.name for path in files if not GLAS_NAME.match(path.stem)]
    note = f"{len(strange)} images have names of another form: {some_of(strange)}"
    masks = {path: path.stem[:-5] for path in files if path.stem.endswith("_anno")}
    images = [path for path in files if path not in masks and path.name not in strange]
    scan = single_masks(pair_by_stem(home, images, masks, (note,) if strange else ()), home)
    return described(scan, home, home / "Grade.csv", "name", "patient ID", "grade (GlaS)")


def _official_glas(home: Path) -> dict[str, str]:
    stems = [path.stem for path in images_in(home)[0] if not path.stem.endswith("_anno")]
    return {s: "train" if s.startswith("train") else "test" for s in stems if GLAS_NAME.match(s)}


def _scan_ham10000(home: Path) -> Scan:
    parts = [path for path in visible(home) if path.name.startswith("HAM10000_images_part_")]
    listed = [images_in(folder) for folder in [*parts, home / HAM10000_MASKS]]
    masks = {path: path.stem.removesuffix("_segmentation") for path in listed[-1][0]}
    images = [path for files, _ in listed[:-1] for path in files]
    notes = tuple(note for _, part in listed for note in part)
    scan = single_masks(pair_by_stem(home, images, masks, notes), home)
    table = home / "HAM10000_metadata"
    table = table if table.is_file() else table.with_suffix(".csv")
    return described(scan, home, table, "image_id", "lesion_id", "dx")


def _scan_folders(home: Path, images: str, masks: str, mask_suffix: str = "") -> Scan:
    pictures, notes = images_in(home / images)
    files, more = images_in(home / masks)
    stems = {path: path.stem.removesuffix(mask_suffix) for path in files}
    return single_masks(pair_by_stem(home, pictures, stems, notes + more), home)


def _scan_pairs(home: Path, mask_suffix: str = "") -> Scan:
    return _scan_folders(home, "images", "masks", mask_suffix)


def _official_kvasir(home: Path) -> dict[str, str]:
    return read_name_lists({split: home / f"{split}.txt" for split in ("train", "test")})


def _official_gms(home: Path) -> dict[str, str] | None:
    files = [path for path in visible(home) if path.name.endswith(GMS_SPLIT)]
    if len(files) > 1:
        names = some_of(path.name for path in files)
        raise InputError(f"{home}: {len(files)} split files: {names}", "choose with --split-file")
    return read_split_file(files[0]) if files else None


GLAS_NAME = re.compile(r"(train|testA|testB)_\d+(_anno)?$")
HAM10000_MASKS = "HAM10000_segmentations_lesion_tschandl"
GMS_SPLIT = "_train_test_names.pkl"

# Where a folder fits several, the first is suggested: so the most particular come first.
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="busi",
            archive="Dataset_BUSI_with_GT/{benign,malignant,normal}/benign (1).png and "
            "benign (1)_mask.png, benign (1)_mask_1.png …",
            licence="CC0 1.0 (Kaggle re-release); the paper is CC BY 4.0",
            published="https://doi.org/10.1016/j.dib.2019.104863",
            citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 2020",
            fits=lambda root: any(is_folder(root / kind) for kind in ("benign", "malignant")),
            scan=_scan_busi,
        ),
        Layout(
            name="bus",
            archive="original/000001.png and GT/000001.png",
            licence="for research, on request from the authors",
            published="https://doi.org/10.1109/JBHI.2017.2731873 (dataset B)",
            citation="Yap et al., Automated breast ultrasound lesions detection using "
            "convolutional neural networks, IEEE J. Biomed. Health Inform. 2018",
            fits=_has("original", "GT"),
            scan=lambda home: _scan_folders(home, "original", "GT"),
        ),
        Layout(
            name="glas",
            archive="Warwick QU Dataset (Released 2016_07_08)/train_1.bmp and train_1_anno.bmp, "
            "testA_…, testB_…, Grade.csv",
            licence="research only, no commercial use",
            published="https://glas.grand-challenge.org/Dataset",
            citation="Sirinukunwattana et al., Gland segmentation in colon histology images: the "
            "GlaS challenge contest, Medical Image Analysis 2017",
            fits=lambda root: any(GLAS_NAME.match(path.stem) for path in visible(root)),
            scan=_scan_glas,
            official=_official_glas,
            labels=True,
        ),
        Layout(
            name="ham10000",
            archive=f"HAM10000_images_part_1/ISIC_….jpg, {HAM10000_MASKS}/ISIC_…_segmentation.png, "
            "HAM10000_metadata",
            licence="CC BY-NC 4.0",
            published="https://doi.org/10.7910/DVN/DBW86T",
            citation="Tschandl et al., The HAM10000 dataset, Scientific Data 2018",
            fits=_has(HAM10000_MASKS),
            scan=_scan_ham10000,
        ),
        Layout(
            name="kvasir-instrument",
            archive="images/….jpg and masks/….png, train.txt, test.txt",
            licence="see the page of the data set",
            published="https://datasets.simula.no/kvasir-instrument",
            citation="Jha et al., Kvasir-Instrument, MultiMedia Modeling 2021, "
            "doi 10.1007/978-3-030-67835-7_19",
            fits=lambda root: _has("images", "masks")(root) and (root / "train.txt").is_file(),
            scan=_scan_pairs,
            official=_official_kvasir,
        ),
        Layout(
            name="gms",
            archive=f"images/NAME.png and masks/NAME.png, *{GMS_SPLIT}",
            licence="that of the data set inside",
            published="https://arxiv.org/abs/2403.18198 (the authors' preparation)",
            citation="Huo et al., Generative Medical Segmentation, AAAI 2025",
            fits=lambda root: _has("images", "masks")(root) and any(root.glob(f"*{GMS_SPLIT}")),
            scan=_scan_pairs,
            official=_official_gms,
        ),
        Layout(
            name="pairs",
            archive="images/NAME.* and masks/NAME.*, or a suffix after the mask's NAME",
            licence="that of the data set inside",
            published="anywhere",
            citation="that of the data set inside",
            fits=_has("images", "masks"),
            scan=_scan_pairs,
        ),
    )
}
