"""A file as a whole: put in place at once, so that a reader sees the old one or the new one."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.places import read

PARTIAL = ".partial"  # how the name of a file ends that is still being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to be `path`; it takes its place when the block ends without an error.

    The folder is made where there is none. Nothing is left of an attempt that failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the process's number: two that write one file do not write into each other's.
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` into a file as a whole."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def sha256_of(paths: Iterable[Path]) -> str:
    """sha256, hex, of the files' bytes one after the other; raises OSError as reading does."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(read(path))
    return digest.hexdigest()
