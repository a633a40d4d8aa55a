"""Published splits: files that name samples, read without trust, and their names matched."""

import csv
import pickle
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import polars as pl

from pipeline.errors import InputError
from pipeline.manifest import SPLITS
from pipeline.telling import some_of


class SplitError(InputError):
    """A split that cannot be used; `names` holds all the names concerned."""

    def __init__(self, message: str, fix: str, names: Iterable[str] = ()) -> None:
        super().__init__(message, fix)
        self.names = tuple(names)


@dataclass(frozen=True)
class SplitMatch:
    """How the names of a published split fell on the samples.

    splits     sample_id → split, for the samples that were named
    unknown    names, as written, that match no sample
    unnamed    sample_ids that no name matches
    clashes    sample_ids that one name means, or one that two names put in different splits
    """

    splits: dict[str, str]
    unknown: tuple[str, ...]
    unnamed: tuple[str, ...]
    clashes: tuple[tuple[str, ...], ...]


def read_split_file(path: Path) -> dict[str, str]:
    """Name → split, from a GMS pickle, a CSV with `sample_id,split`, or a parquet with these.

    A pickle is read by an unpickler that refuses to load any class or function, so none can run.

    returns    names as written, each to "train", "val" or "test"
    raises     SplitError when the file is missing, damaged, of another form, names another split,
               or puts one name in two splits
    source     GMS: {"train": {"name_list": [...]}, "test": {"name_list": [...]}}
    """
    readers = {".pkl": _read_pickle, ".pickle": _read_pickle, ".csv": _read_csv}
    reader = (readers | {".parquet": _read_parquet}).get(path.suffix.lower())
    if reader is None:
        raise SplitError(
            f"{path}: a split file ends in .pkl, .csv or .parquet", "convert it to CSV"
        )
    if not path.is_file():
        raise SplitError(f"{path}: no such split file", "check the path given to --split-file")
    return _one_split_each(path, reader(path))


def read_name_lists(paths: Mapping[str, Path]) -> dict[str, str]:
    """Name → split, from one text file a split with a name a line; an image suffix is ignored.

    raises     SplitError when a file is missing or not UTF-8, or a name stands in two of them
    """
    pairs = []
    for split, path in paths.items():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SplitError(f"{path}: cannot be read: {error}", "fetch the file again") from error
        names = (re.sub(r"\.(jpe?g|png)$", "", line.strip()) for line in lines)
        pairs += [(name, split) for name in names if name]
    return _one_split_each(next(iter(paths.values())).parent, pairs)


def normalise(name: str) -> str:
    """A name as split files are matched: `benign (1)` and `benign_1` are both `benign_1`.

    Runs of anything but letters and digits become one underscore, outer ones go; case is kept.
    Composed and decomposed accents are one (macOS writes file names decomposed).
    """
    composed = unicodedata.normalize("NFC", name)
    return re.sub(r"[\W_]+", "_", composed).strip("_") or composed


def match_splits(named: Mapping[str, str], sample_ids: Iterable[str]) -> SplitMatch:
    """Match the names of a published split with samples, both normalised."""
    samples = _by_normalised(sample_ids)
    names = _by_normalised(named)
    splits, clashes = {}, []
    for key in sorted(samples.keys() & names.keys()):
        found = {named[name] for name in names[key]}
        if len(samples[key]) > 1 or len(found) > 1:
            clashes.append(tuple(samples[key]))
        else:
            splits[samples[key][0]] = found.pop()
    unknown = [name for key, group in names.items() if key not in samples for name in group]
    unnamed = [one for key, group in samples.items() if key not in names for one in group]
    return SplitMatch(splits, tuple(unknown), tuple(unnamed), tuple(clashes))


def _by_normalised(names: Iterable[str]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for name in sorted(names):
        table.setdefault(normalise(name), []).append(name)
    return table


def _one_split_each(path: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    strange = sorted({split for _, split in pairs if split not in SPLITS})
    if strange:
        message = f"{path}: unknown split {some_of(map(repr, strange))}"
        raise SplitError(message, "splits are train, val and test")
    splits: dict[str, set[str]] = {}
    for name, split in pairs:
        splits.setdefault(name, set()).add(split)
    torn = sorted(name for name, found in splits.items() if len(found) > 1)
    if torn:
        raise SplitError(
            f"{path}: {len(torn)} names stand in two splits: {some_of(torn)}",
            "name each sample once",
            torn,
        )
    if not splits:
        raise SplitError(f"{path}: names no sample", "list each sample with its split")
    return dict(pairs)


class _NamesOnly(pickle.Unpickler):
    """Unpickles dicts, lists and strings; refuses whatever would have to be imported."""

    def find_class(self, module_name: str, global_name: str) -> Never:
        raise SplitError(
            f"asks to load {module_name}.{global_name}; a split file holds only names, so it was "
            "refused and nothing in it was run",
            "do not trust this file; write the split as CSV with the columns sample_id,split",
        )


def _read_pickle(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open("rb") as file:
            content = _NamesOnly(file).load()
    except SplitError as error:
        raise SplitError(f"{path}: {error.message}", error.fix) from None
    except Exception as error:  # damaged pickles raise nearly anything
        message = f"{path}: not a pickle that can be read: {error}"
        raise SplitError(message, "fetch the file again") from error
    try:
        lists = {split: part["name_list"] for split, part in content.items()}
        pairs = [(name, split) for split, names in lists.items() for name in names]
    except (AttributeError, KeyError, TypeError):
        _wrong_form(path)
    text = all(isinstance(name, str) and isinstance(split, str) for name, split in pairs)
    if not text or any(isinstance(names, str) for names in lists.values()):
        _wrong_form(path)
    return pairs


def _wrong_form(path: Path) -> Never:
    message = f"{path}: not of the form {{'train': {{'name_list': [...]}}, 'test': {{...}}}}"
    raise SplitError(message, "use the GMS authors' file, or CSV with the columns sample_id,split")


def _read_csv(path: Path) -> list[tuple[str, str]]:
    return [(row["sample_id"], row["split"]) for row in read_rows(path, ("sample_id", "split"))]


def read_rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file whatever its line ends; its `columns` are present and stripped.

    raises     SplitError when the file is not UTF-8 text, lacks a column or has a short row
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        table = csv.DictReader(lines, skipinitialspace=True, strict=True)
        missing = [column for column in columns if column not in (table.fieldnames or ())]
        rows: list[dict[str, Any]] = [] if missing else list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SplitError(f"{path}: not CSV text: {error}", "save it as UTF-8 CSV") from error
    if missing:
        message = f"{path}: no column {', '.join(map(repr, missing))}"
        raise SplitError(message, f"the first line names the columns {', '.join(columns)}")
    for number, row in enumerate(rows, 1):
        if any(not row[column] for column in columns):
            message = f"{path}: row {number} is incomplete: {', '.join(map(str, row.values()))}"
            raise SplitError(message, f"fill in {' and '.join(columns)} in every row")
    return [{column: row[column].strip() for column in columns} for row in rows]


def _read_parquet(path: Path) -> list[tuple[str, str]]:
    try:
        frame = pl.read_parquet(path, columns=["sample_id", "split"]).cast(pl.String)
    except (pl.exceptions.PolarsError, OSError) as error:
        message = f"{path}: not a parquet file with the columns sample_id and split: {error}"
        raise SplitError(message, "write both columns as text") from error
    if frame.null_count().row(0) != (0, 0):
        raise SplitError(f"{path}: has empty cells", "fill in sample_id and split in every row")
    return [(name, split) for name, split in frame.rows()]
