"""What a store of some state holds when nothing disturbs it, and whether that is what was read.

A state is a manifest with its images as they were, a number of views and a seed of views. Its
reference is encoded from nothing into a store of its own, and read with zarr and polars alone.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zarr
from children import Child, call, digest_of

SIZE_PX = 64
HEAD = ("config_digest", "samples_digest", "views", "samples", "by_split")
LEFTOVERS = ("*.lock", "*.pruned", "*.old")


@dataclass(frozen=True)
class State:
    """What a store was asked to be.

    snapshot  folder with raw/, the images, and m.parquet, the manifest of them
    kept      manifest whose samples a prune has kept of them; None for all
    """

    snapshot: Path
    views: int
    seed: int
    kept: Path | None = None


@dataclass(frozen=True)
class Reference:
    """A state's cells, {sample_id: [{array: digest} of view 0, …]}, splits by id, and receipt."""

    cells: dict[str, list[dict[str, str]]]
    splits: dict[str, str]
    receipt: dict[str, Any]


class References:
    """Undisturbed stores, each encoded once and kept for all sequences."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._known: dict[tuple[str, int, int], Reference] = {}
        self._names: dict[tuple[Path, Path | None], str] = {}

    def of(self, state: State) -> Reference | None:
        """The reference of a state; None where a prune would have left nothing."""
        place = (state.snapshot, state.kept)
        if place not in self._names:
            kept = None if state.kept is None else str(state.kept)
            self._names[place] = call(_own_manifest, str(self._folder), str(state.snapshot), kept)
        if not self._names[place]:
            return None
        key = (self._names[place], state.views, state.seed)
        if key not in self._known:
            self._known[key] = self._made(*key)
        return self._known[key]

    def named(self, receipt: dict[str, Any], states: Iterable[State]) -> Reference | None:
        """The reference of the state among some that a receipt speaks of."""
        head = {key: receipt.get(key) for key in HEAD}
        for state in states:
            if state.views != head["views"]:
                continue
            reference = self.of(state)
            if reference and {key: reference.receipt[key] for key in HEAD} == head:
                return reference
        return None

    def _made(self, name: str, views: int, seed: int) -> Reference:
        store = self._folder / f"{name}-{views}-{seed}.zarr"
        args = ["encode", str(self._folder / f"{name}.parquet"), str(store), "--device", "cpu"]
        args += ["--tokenizer", str(self._tokenizer), "--size", str(SIZE_PX)]
        args += ["--views", str(views), "--seed", str(seed)]
        child = Child(args, store.with_suffix(".log"))
        child.wait()
        if child.code:
            raise RuntimeError(f"a reference cannot be encoded: {child.talk}")
        cells, splits = call(read_cells, str(store))
        return Reference(cells, splits, json.loads((store / "receipt.json").read_text()))


def _own_manifest(folder: str, snapshot: str, kept: str | None) -> str:
    """Put a manifest with images of its own into a folder; its name, or "" where it has no row."""
    table = pl.read_parquet(Path(snapshot) / "m.parquet")
    inside, frame = Path(table["root"][0]).name, table.drop("root")
    if kept is not None:
        frame = frame.filter(pl.col("sample_id").is_in(pl.read_parquet(kept)["sample_id"]))
    if frame.is_empty():
        return ""
    name = hashlib.sha256(frame.write_json().encode()).hexdigest()[:16]
    root = Path(folder) / name
    if not root.exists():
        shutil.copytree(Path(snapshot) / "raw", root)
        moved = pl.lit(str(root / inside)).alias("root")
        frame.with_columns(moved).write_parquet(Path(folder) / f"{name}.parquet")
    return name


def read_cells(store: str) -> tuple[dict[str, list[dict[str, str]]], dict[str, str]]:
    """Every live cell of a store by sample and view, and each sample's split."""
    samples = pl.read_parquet(Path(store) / "samples.parquet").with_row_index("row")
    live = samples.filter(pl.col("split").is_not_null())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in")
        group = zarr.open_group(store, mode="r")
        arrays = {name: group[name] for name in ("image_mean", "image_std", "mask_mean", "mask")}
    length = arrays["mask"].chunks[1]
    cells: dict[str, list[dict[str, str]]] = {name: [] for name in live["sample_id"]}
    for view in range(int(group.attrs["views"])):
        for _, block in live.group_by(pl.col("row") // length, maintain_order=True):
            start = block["row"][0] // length * length  # chunks of none that is live may be gone
            read = {
                name: np.asarray(of[view, start : start + length]) for name, of in arrays.items()
            }
            read["mask"] = np.packbits(read["mask"], axis=-1)
            for row, name in block.select("row", "sample_id").iter_rows():
                digests = {
                    array: digest_of(of[row - start].tobytes()) for array, of in read.items()
                }
                cells[name].append(digests)
    return cells, dict(live.select("sample_id", "split").iter_rows())


# --- judgement


def wrong_cells(lines: Iterable[dict[str, Any]], reference: Reference) -> Iterator[str]:
    """Each cell on record that the reference does not hold, in words."""
    for line in lines:
        role = line["role"]
        for name, view, digests in line["cells"]:
            if name not in reference.cells:
                yield f"{role}: {name} is no sample of that state"
                continue
            if role in ("train", "student") and reference.splits[name] != "train":
                yield f"{role}: {name} is {reference.splits[name]} in that state"
            views = reference.cells[name]
            if view is not None and view >= len(views):
                yield f"{role}: that state has no view {view}"
                continue
            allowed = views if view is None else [views[view]]
            if not any(digests.items() <= cell.items() for cell in allowed):
                wrong = [a for a in digests if all(digests[a] != cell[a] for cell in allowed)]
                where = "any view" if view is None else f"view {view}"
                yield f"{role}: {', '.join(wrong) or 'arrays together'} of {name}, {where}"


def store_faults(store: Path, reference: Reference) -> tuple[int, list[str]]:
    """How many cells of a finished store differ from the reference, and all that is wrong."""
    cells, splits = call(read_cells, str(store))
    found = []
    if splits != reference.splits:
        found.append("the finished store has other samples or splits than its manifest")
    wrong = [
        f"{array} of {name}, view {view}"
        for name, views in reference.cells.items()
        for view, cell in enumerate(views)
        for array in cell
        if cells.get(name, [])[view : view + 1] == [] or cells[name][view][array] != cell[array]
    ]
    found += [f"the finished store holds another {what}" for what in wrong[:3]]
    receipt = json.loads((store / "receipt.json").read_text())
    if receipt != reference.receipt:
        other = [key for key in receipt if receipt[key] != reference.receipt.get(key)]
        found.append(f"the finished store's receipt differs in {', '.join(other)}")
    found += [f"{path.name} is left beside it" for path in store.parent.glob(f"{store.name}.*lock")]
    found += [f"{path.name} is left in it" for path in store.rglob("*.partial")]
    return len(wrong), found


def run_faults(runs: Path) -> list[str]:
    """What no run folder may look like, whatever happened to its training."""
    found = []
    for run in sorted(path for path in runs.glob("*") if path.is_dir()):
        if run.name.endswith(".partial"):
            continue
        if not (run / "run.json").exists():
            files = ", ".join(sorted(path.name for path in run.iterdir()))
            found.append(f"{run.name} has no run.json, only {files or 'nothing'}")
            continue
        if not (run / "summary.json").exists():
            continue
        wanted = json.loads((run / "run.json").read_text())["settings"]["epochs"]
        lines = (run / "log.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines]
        if epochs != list(range(1, wanted + 1)):
            found.append(f"{run.name} is finished, and its log has epochs {epochs} of {wanted}")
        if not _whole(run / "best.safetensors"):
            found.append(f"{run.name} is finished, and best.safetensors is not whole")
    return found


def student_faults(store: Path) -> list[str]:
    """Students beside a store that are not whole."""
    students = sorted(store.parent.glob(f"{store.name}.student*.safetensors"))
    return [f"{path.name} is not whole" for path in students if not _whole(path)]


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    if not path.exists():
        return False
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:
        return False
    header.pop("__metadata__", None)
    ends = [tensor["data_offsets"][1] for tensor in header.values()]
    return len(content) == 8 + length + max(ends, default=0)
