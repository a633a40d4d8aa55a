"""Files, folders and globs as a user gives them, resolved to image files to be read."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.places import reaching
from pipeline.telling import some_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm"}
LITTER = {"thumbs.db", "desktop.ini", "__macosx"}
SHOWN = 5


def find_images(words: Iterable[str | Path]) -> list[Path]:
    """The image files that words lead to, in their order, each once.

    words   a file is taken whatever its suffix; a folder stands for its image files by suffix
            (`SUFFIXES`), not for those of its folders; any other word is a glob of image files,
            in which `**` stands for folders of any depth
    raises  InputError naming every word that leads to no image
    """
    found: dict[Path, Path] = {}
    barren = []
    for word in words:
        paths = _images_of(str(word))
        if not paths:
            barren.append(str(word))
        for path in paths:
            # A folder and a glob may lead to one file by two spellings.
            found.setdefault(path.parent.resolve() / path.name, path)
    if barren:
        raise InputError(
            f"{some_of(barren, SHOWN, '; ')}: no image there, and no glob that matches one",
            f"give files, folders that hold images ({', '.join(sorted(SUFFIXES))}), or globs; "
            "a/**/*.png looks into folders of folders",
        )
    return list(found.values())


def require_distinct_stems(images: Sequence[Path]) -> None:
    """Raise InputError when two files would give their name to the same output."""
    of_stem: dict[str, list[str]] = {}
    for path in images:
        of_stem.setdefault(path.stem, []).append(str(path))
    shared = [" and ".join(paths) for paths in of_stem.values() if len(paths) > 1]
    if shared:
        raise InputError(
            f"{len(shared)} names are shared by several images: {some_of(shared, SHOWN, '; ')}",
            "one call for each folder, with an output folder of its own",
        )


def visible(folder: Path) -> list[Path]:
    """Sorted content of a folder without what file managers and archivers leave behind."""
    try:
        with reaching(folder):
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed: {error.strerror}", "allow reading") from None
    for path in paths:
        if any("\ud800" <= letter <= "\udfff" for letter in path.name):
            raise InputError(f"{str(path)!r}: the file name is not UTF-8", "rename the file")
    return [p for p in paths if p.name[0] != "." and p.name.lower() not in LITTER]


def images_in(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Image files of a folder, and a note on whatever else lies there."""
    images: list[Path] = []
    others: list[Path] = []
    for path in visible(folder):
        known = path.suffix.lower() in SUFFIXES and path.is_file()
        (images if known else others).append(path)
    names = some_of(path.name for path in others)
    note = f"{folder.name}: {len(others)} entries are not image files: {names}"
    return images, (note,) if others else ()


def _images_of(word: str) -> list[Path]:
    path = Path(word).expanduser()
    if path.is_dir():
        return images_in(path)[0]
    if path.exists():
        return [path]
    matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207, absolute patterns
    return [match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file()]
