"""Phantoms: synthetic breast-ultrasound images with exact lesion masks, in BUSI's archive layout.

An image is drawn in the order in which a scanner makes one: tissue as a map of echogenicity,
lesions in it, shadows and attenuation over it (pipeline.phantoms.anatomy), then scatterers, the
beam, the envelope and log compression (pipeline.phantoms.speckle). No patient was imaged.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import UsageError
from pipeline.files import PARTIAL, replace_file
from pipeline.phantoms.anatomy import MARGIN_PX, Mask, draw_lesion, draw_shadows, draw_tissue
from pipeline.phantoms.speckle import compress, speckle_envelope
from pipeline.telling import Progress

FORMAT_VERSION = 1  # also goes up when the same seed draws other pixels
ARCHIVE = "Dataset_BUSI_with_GT"
PROVENANCE = "PHANTOMS.json"
CLASS_SHARES = {"benign": 437, "malignant": 210, "normal": 133}  # images of each class in BUSI
LONG_SIDE_PX = 320
SHORT_SIDES_PX = (200, 300)
PORTRAIT_SHARE = 0.08
SECOND_LESION_EVERY = 25  # of BUSI's 437 benign images 16 have a second mask, benign (4) among them


@dataclass(frozen=True)
class Phantom:
    """One image and the masks of its lesions.

    image_u8   (H, W) uint8, log-compressed echo, 0…255
    masks      (H, W) bool, one a lesion, disjoint; none for the class `normal`
    """

    image_u8: npt.NDArray[np.uint8]
    masks: tuple[Mask, ...]


@dataclass(frozen=True)
class PhantomSet:
    """What `write_phantoms` leaves in `root`: its images in all, and those written this time."""

    root: Path
    seed: int
    count: int
    by_class: dict[str, int]
    written: int


def draw_phantom(seed: int, kind: str, index: int) -> Phantom:
    """Draw image `index` of a class: a pure function of these three.

    seed       ≥ 0
    kind       benign, malignant or normal
    index      ≥ 1, as in the file's name
    returns    Phantom; the longer side is 320 px, the shorter 200 to 299 px
    """
    rng = np.random.default_rng([seed, list(CLASS_SHARES).index(kind), index])
    short = int(rng.integers(*SHORT_SIDES_PX))
    portrait = rng.random() < PORTRAIT_SHARE
    height, width = (LONG_SIDE_PX, short) if portrait else (short, LONG_SIDE_PX)
    shape = height, width + 2 * MARGIN_PX

    tissue_db = draw_tissue(rng, shape)
    shadow_db = draw_shadows(rng, shape)
    masks: list[Mask] = []
    lesions = count_lesions(kind, index)
    for place in range(lesions):
        lesion = draw_lesion(rng, kind == "malignant", tissue_db, shadow_db, place, lesions)
        masks.append(lesion & ~np.any(masks, axis=0) if masks else lesion)

    amplitude = np.power(10, (tissue_db + shadow_db) / 20, dtype=np.float32)
    envelope = speckle_envelope(amplitude, rng)
    inside = slice(MARGIN_PX, MARGIN_PX + width)
    return Phantom(compress(envelope, rng)[:, inside], tuple(mask[:, inside] for mask in masks))


def count_lesions(kind: str, index: int) -> int:
    """Lesions in an image: none if normal, two in benign (4), (29), (54) …, else one."""
    if kind == "normal":
        return 0
    return 2 if kind == "benign" and index % SECOND_LESION_EVERY == 4 else 1


def plan_images(count: int) -> Iterator[tuple[str, int]]:
    """Class and index of the first `count` images: the class that lags most behind BUSI's shares.

    A longer plan begins with the shorter one, so that a set can grow.
    """
    drawn = dict.fromkeys(CLASS_SHARES, 0)
    whole = sum(CLASS_SHARES.values())
    for place in range(1, count + 1):
        kind = max(drawn, key=lambda kind: CLASS_SHARES[kind] * place / whole - drawn[kind])
        drawn[kind] += 1
        yield kind, drawn[kind]


def write_phantoms(
    root: Path, count: int, seed: int = 0, progress: Progress = lambda *_: None
) -> PhantomSet:
    """Write the first `count` images of a seed with their masks; a set that is there may only grow.

    root       folder, made when absent; gets Dataset_BUSI_with_GT/ and PHANTOMS.json
    count      images in all, ≥ 1, in BUSI's shares of the three classes
    seed       ≥ 0
    progress   called with (images done, images in all)
    returns    PhantomSet; written is 0 when every image was there
    raises     UsageError when count or seed is out of range, or when `root` holds a set of another
               seed, version or greater count, or files of another origin
    """
    check_numbers(count, seed)
    planned = list(plan_images(count))
    check_root(root, planned, seed)
    provenance = {"format_version": FORMAT_VERSION, "seed": seed, "count": count}
    replace_file(root / PROVENANCE, (json.dumps(provenance) + "\n").encode())
    written = 0
    for done, (kind, index) in enumerate(planned, start=1):
        if not all((root / name).is_file() for name in file_names(kind, index)):
            write_phantom(root, kind, index, draw_phantom(seed, kind, index))
            written += 1
        progress(done, count)
    by_class = {name: sum(kind == name for kind, _ in planned) for name in CLASS_SHARES}
    return PhantomSet(root, seed, count, by_class, written)


def file_names(kind: str, index: int) -> list[str]:
    """Paths of one image's files below the root: the image, then its masks, as BUSI names them."""
    stem = f"{ARCHIVE}/{kind}/{kind} ({index})"
    masks = [f"{stem}_mask.png", f"{stem}_mask_1.png"]
    return [f"{stem}.png", *masks[: max(1, count_lesions(kind, index))]]


def write_phantom(root: Path, kind: str, index: int, phantom: Phantom) -> None:
    """Write an image as 8-bit grey, its masks as 1-bit PNG; a normal image has an empty one."""
    masks = phantom.masks or (np.zeros(phantom.image_u8.shape, dtype=bool),)
    for name, pixels in zip(file_names(kind, index), (phantom.image_u8, *masks), strict=True):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG", compress_level=1)
        replace_file(root / name, png.getvalue())


def check_numbers(count: int, seed: int) -> None:
    """Raise UsageError when no set can be drawn from these."""
    if count < 1:
        raise UsageError(
            f"--count {count}: a set has at least one image", "ask for --count 1 or more"
        )
    if seed < 0:
        raise UsageError(
            f"--seed {seed}: a seed is not negative", "use --seed 0 or another integer ≥ 0"
        )


def check_root(root: Path, planned: list[tuple[str, int]], seed: int) -> None:
    """Raise UsageError unless `root` is absent, empty, or holds a beginning of the planned set."""
    elsewhere = "name another OUT folder"
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file, not a folder", elsewhere)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    if PROVENANCE in found:
        there = read_provenance(root / PROVENANCE)
        if there["seed"] != seed:
            raise UsageError(
                f"{root} holds the phantoms of seed {there['seed']}, not of seed {seed}",
                f"{elsewhere}, or ask for --seed {there['seed']}",
            )
        if there["count"] > len(planned):
            raise UsageError(
                f"{root} holds {there['count']} phantoms, more than the {len(planned)} asked for",
                f"{elsewhere}, or ask for --count {there['count']} or more",
            )
    ours = {PROVENANCE} | {name for image in planned for name in file_names(*image)}
    foreign = sorted(name for name in found - ours if not _is_left_of(name, ours))
    if PROVENANCE not in found:
        foreign = sorted(found)
    if foreign:
        count = f"{len(foreign)} file{'s' * (len(foreign) > 1)}"
        raise UsageError(f"{root} holds {count} of another origin; first: {foreign[0]}", elsewhere)


def _is_left_of(name: str, ours: set[str]) -> bool:
    """Whether a file is what a killed writer left of one of ours: NAME.PROCESS.partial."""
    return name.endswith(PARTIAL) and name.removesuffix(PARTIAL).rpartition(".")[0] in ours


def read_provenance(path: Path) -> dict[str, int]:
    """The facts in PHANTOMS.json: format_version, seed, count."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version, seed, count = (facts[key] for key in ("format_version", "seed", "count"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} cannot be read: {error!r}", "name another OUT folder") from error
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path}: format_version {version}, this program writes {FORMAT_VERSION}",
            "name another OUT folder, and let this program draw the set again",
        )
    return {"seed": seed, "count": count}
