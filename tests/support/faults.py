"""What befalls the files of a store outside gms-lmm: bytes flip, files are lost, swapped, restored.

Each takes a source of chance, the store, and older whole copies of it; it says what it has done,
or nothing where it found nothing to do it to.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

Fault = Callable[[random.Random, Path, list[Path]], str | None]


def _chunks(store: Path, array: str = "*") -> list[Path]:
    found = (path for path in store.glob(f"{array}/c/**/*") if path.is_file())
    return sorted(path for path in found if not path.name.endswith(".partial"))


def _name(store: Path, path: Path) -> str:
    return str(path.relative_to(store))


def flip(rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """A byte of a chunk."""
    chunks = [path for path in _chunks(store) if path.stat().st_size]
    if not chunks:
        return None
    chunk = rng.choice(chunks)
    content = bytearray(chunk.read_bytes())
    place = rng.randrange(len(content))
    content[place] ^= 1 << rng.randrange(8)
    chunk.write_bytes(content)
    return f"{_name(store, chunk)} at {place}"


def truncate(rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """A chunk, to some of its bytes or none."""
    if not (chunks := _chunks(store)):
        return None
    chunk = rng.choice(chunks)
    content = chunk.read_bytes()
    kept = rng.randrange(len(content)) if content else 0
    chunk.write_bytes(content[:kept])
    return f"{_name(store, chunk)} to {kept} bytes"


def delete(rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """A chunk."""
    if not (chunks := _chunks(store)):
        return None
    chunk = rng.choice(chunks)
    chunk.unlink()
    return _name(store, chunk)


def swap(rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """Two chunks of one array."""
    array = rng.choice(["image_mean", "image_std", "mask_mean", "mask", "checksum", "key"])
    if len(chunks := _chunks(store, array)) < 2:
        return None
    return _swap(store, *rng.sample(chunks, 2))


def swap_arrays(rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """The chunks of images and masks of one shard, which are of one size."""
    images = _chunks(store, "image_mean")
    pairs = [
        (path, store / "mask_mean" / path.relative_to(store / "image_mean")) for path in images
    ]
    pairs = [pair for pair in pairs if pair[1].exists()]
    return _swap(store, *rng.choice(pairs)) if pairs else None


def _swap(store: Path, one: Path, other: Path) -> str:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return f"{_name(store, one)} and {_name(store, other)}"


def copy_over(rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """One chunk over another of the same array."""
    array = rng.choice(["image_mean", "mask_mean", "mask", "key"])
    if len(chunks := _chunks(store, array)) < 2:
        return None
    one, other = rng.sample(chunks, 2)
    shutil.copyfile(one, other)
    return f"{_name(store, one)} over {_name(store, other)}"


def lose_receipt(_rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """The receipt, gone."""
    (store / "receipt.json").unlink(missing_ok=True)
    return ""


def old_receipt(rng: random.Random, store: Path, copies: list[Path]) -> str | None:
    """The receipt of an older state in the place of the present one."""
    if not copies or not store.exists():
        return None
    copy = rng.choice(copies)
    shutil.copyfile(copy / "receipt.json", store / "receipt.json")
    return f"of copy {copy.name}"


def half_sync(rng: random.Random, store: Path, copies: list[Path]) -> str | None:
    """A random half of the files of an older whole copy over the present ones."""
    if not copies or not store.exists():
        return None
    copy = rng.choice(copies)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    for path in rng.sample(files, len(files) // 2):
        target = store / path.relative_to(copy)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return f"of copy {copy.name}"


def half_sync_of_data(rng: random.Random, store: Path, copies: list[Path]) -> str | None:
    """As `half_sync`, of chunks alone that are there in both."""
    if not copies or not store.exists():
        return None
    copy = rng.choice(copies)
    names = [path.relative_to(copy) for path in _chunks(copy)]
    names = [name for name in names if (store / name).exists()]
    for name in rng.sample(names, len(names) // 2):
        shutil.copyfile(copy / name, store / name)
    return f"of copy {copy.name}"


def foreign(rng: random.Random, store: Path, _copies: list[Path]) -> str | None:
    """A file that is none of the store's."""
    if not store.exists():
        return None
    name = rng.choice(["notes.txt", "image_mean/c/9/9/0/0/0", "key/extra", ".DS_Store"])
    path = store / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.randbytes(40))
    return name


FAULTS: dict[str, Fault] = {
    function.__name__: function
    for function in (
        flip,
        truncate,
        delete,
        swap,
        swap_arrays,
        copy_over,
        lose_receipt,
        old_receipt,
        half_sync,
        half_sync_of_data,
        foreign,
    )
}
