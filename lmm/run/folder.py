"""A run on disk: what it was asked to do, its weights, its log, its summary.

lineage.parquet    the samples it is trained and selected on, by content; see lmm.run.lineage
run.json           format_version, settings, the store and tokenizer it was trained on, software
log.jsonl          one JSON object an epoch: the curves of the report
best.safetensors   weights of the epoch that the selection split chose
last.safetensors   weights, optimiser state and progress, from which --resume goes on
summary.json       what `train --json` printed, once the run is finished
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import torch

from lmm.model import LatentMappingModel
from lmm.run.checkpoint import load_weights, read_checkpoint
from lmm.run.lineage import LINEAGE_FILE, lineage_of, read_lineage, write_lineage
from lmm.settings import TrainSettings
from lmm.splits import images_by_split, rows_of_split, rows_to_train_on
from pipeline.errors import ArtefactError, UsageError
from pipeline.files import PARTIAL, replace_file
from pipeline.images import Window
from pipeline.store import LatentStore
from pipeline.store.lock import exclusive

RUN_FORMAT_VERSION = 2
_SOFTWARE = ("gms-lmm", "torch", "diffusers", "zarr")


@dataclass(frozen=True)
class Run:
    """An existing run directory.

    description  the content of run.json
    """

    path: Path
    description: dict[str, Any]

    @property
    def tokenizer(self) -> dict[str, Any] | None:
        """The tokenizer whose latents the model maps; None for weights imported without one."""
        tokenizer: dict[str, Any] | None = self.description["tokenizer"]
        return tokenizer

    @property
    def data(self) -> dict[str, Any] | None:
        """What it was trained on: a store, or of a baseline a manifest; None of imported weights.

        Both have url, size, preprocessing and images, the digest of the images of each split.
        """
        data: dict[str, Any] | None = self.description["store"] or self.description.get("manifest")
        return data

    @property
    def imported(self) -> bool:
        """Whether its weights came from elsewhere: no data, no settings, no log."""
        return self.data is None

    @property
    def is_baseline(self) -> bool:
        """Whether its model is one in pixels, which maps no latents; see `lmm.baseline`."""
        return "manifest" in self.description

    @property
    def loss(self) -> str:
        """What it minimised, in a word; of weights that came from elsewhere `imported`."""
        if self.imported:
            return "imported"
        return "dice + ce" if self.is_baseline else str(self.description["settings"]["loss"])

    @property
    def model_name(self) -> str:
        """What its model is called in tables: LMM, or a baseline's network."""
        return str(self.description["model"]["name"]) if self.is_baseline else "LMM"

    @property
    def data_words(self) -> str:
        """Its data as commands are told of it."""
        if self.data is None:
            return "--latents STORE"
        return f"--{'manifest' if self.is_baseline else 'latents'} {self.data['url']}"

    @property
    def fold(self) -> int | None:
        """The fold that it left out of train; None where it left none out."""
        return (self.description["settings"] or {}).get("fold")

    @property
    def held_out(self) -> dict[str, str]:
        """Digests of its data's splits when it was made, by name; none of an imported run."""
        return {} if self.data is None else dict(self.data["images"])

    @property
    def e_precision(self) -> str:
        """Arithmetic in which E encoded its store; float32 for an imported run."""
        return "fp32" if self.data is None else str(self.data["preprocessing"]["precision"])

    @property
    def window(self) -> Window | None:
        """How the 16-bit images of its data were read; None for their full range."""
        window = None if self.data is None else self.data["preprocessing"].get("window")
        return window and (window[0], window[1])

    def lineage(self) -> pl.DataFrame | None:
        """What it has seen, as `lmm.run.lineage.lineage_of` gives it; None where it is not known.

        raises  ArtefactError when the file is gone or damaged
        """
        return None if self.imported else read_lineage(self.path)

    @property
    def finished(self) -> bool:
        """Whether its last epoch is done, and its summary written."""
        return (self.path / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """What `train --json` printed; raises ArtefactError when the run is not finished."""
        if not self.finished:
            assert self.data is not None, "weights that came from elsewhere are asked for none"
            how = "baseline" if self.is_baseline else "train --latents"
            fix = f"gms-lmm {how} {self.data['url']} --out {self.path} … --resume"
            raise ArtefactError(f"{self.path} is not finished", fix)
        content: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return content

    def model(self, device: str | torch.device = "cpu") -> LatentMappingModel:
        """The selected model, in evaluation mode.

        raises  ArtefactError when its weights are gone or damaged, or of another class of model
        """
        sizes = self.description["model"]
        if "class" in sizes:
            raise ArtefactError(
                f"{self.path} holds weights of a {sizes['class']}, no LatentMappingModel",
                "load them into one: lmm.run.checkpoint.load_weights and read_checkpoint",
            )
        weights, _ = read_checkpoint(self.path / "best.safetensors")
        model = LatentMappingModel(sizes["latent_channels"], sizes["width"])
        load_weights(model, weights)
        return model.to(device).eval()


def open_run(path: Path) -> Run:
    """The run at that path; raises ArtefactError when there is none, or one of another format."""
    file = path / "run.json"
    if not file.exists():
        raise ArtefactError(f"no run at {path}", "gms-lmm train --latents STORE --out RUN")
    description = json.loads(file.read_text())
    found = description.get("format_version")
    if found != RUN_FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has run format {found}, this version reads format {RUN_FORMAT_VERSION}",
            "train it again",
        )
    return Run(path, description)


def create_run(
    path: Path,
    description: dict[str, Any],
    lineage: pl.DataFrame | None = None,
    software: Sequence[str] = (),
) -> Run:
    """A new run directory with what it is going to see and its run.json.

    It is made beside its place and put there whole.

    lineage   None for one that is not trained here
    software  packages whose versions matter to it beside those that always do
    raises    UsageError when something else is there
    """
    there = list(path.iterdir()) if path.exists() else []
    if any(file.name != LINEAGE_FILE and not file.name.endswith(PARTIAL) for file in there):
        raise UsageError(f"{path} exists and is not a run", "--out a path that does not exist yet")
    fresh = path.with_name(path.name + PARTIAL)
    if fresh.exists():  # of a process that was killed
        shutil.rmtree(fresh)
    if lineage is not None:
        write_lineage(fresh, lineage)
    versions = {name: version(name) for name in (*_SOFTWARE, *software)}
    content = {"format_version": RUN_FORMAT_VERSION, **description, "software": versions}
    write_json(fresh / "run.json", content)
    for leftover in there:  # what a run of an earlier version left in its first moment
        leftover.unlink()
    fresh.replace(path)
    return Run(path, content)


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold a run, or the place where one is to be, for one training alone.

    raises  ArtefactError naming the process that trains it
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(str(path), ".lock", "train"):
        yield


def start_run(
    out: Path,
    store: LatentStore,
    settings: TrainSettings,
    *,
    model_class: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """The run to be trained on a finished store: a new one, or one of the same that exists.

    model_class  what the model is called where it is no LatentMappingModel
    resume       go on with a run that was not finished
    overwrite    replace a run that has other settings or another store, instead of refusing it
    raises       ArtefactError for a run that is another's or was not finished; UsageError when
                 something else is there
    """
    description = _description(store, settings, model_class)
    samples = store.samples
    train, select = rows_to_train_on(samples, settings), rows_of_split(samples, settings.select_on)
    lineage = lineage_of(samples[train], samples[select])
    return begin_run(out, description, lineage, resume=resume, overwrite=overwrite)


def begin_run(
    out: Path,
    description: dict[str, Any],
    lineage: pl.DataFrame,
    *,
    software: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """A new run, or the one of the same description that exists; the rest as for `start_run`.

    description  what run.json says of it: model, settings, its data under `store` or `manifest`
    software     as for `create_run`
    """
    if not (out / "run.json").exists():
        return create_run(out, description, lineage, software)
    run = open_run(out)
    for key in [key for key in ("settings", "store", "manifest") if description.get(key)]:
        theirs, ours = run.description.get(key), description[key]
        other = [k for k in ours if k != "url" and (theirs or {}).get(k) != ours[k]]
        if other and overwrite:
            shutil.rmtree(out)
            return create_run(out, description, lineage, software)
        if other:
            raise ArtefactError(
                f"{out} is a run with another {key}: {', '.join(other)} differ",
                "--out another directory, or --overwrite to train it anew",
            )
    if not (run.finished or resume):
        raise ArtefactError(f"{out} is a run that was not finished", "--resume, or --out another")
    return run


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file as a whole by a JSON object; raises ValueError for what is not finite."""
    replace_file(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _description(
    store: LatentStore, settings: TrainSettings, model_class: str | None
) -> dict[str, Any]:
    model: dict[str, Any] = {"latent_channels": store.latent_shape[0], "width": settings.width}
    return {
        "model": model if model_class is None else {**model, "class": model_class},
        "settings": asdict(settings),
        "store": {
            "url": store.url,
            "size": store.size,
            "preprocessing": store.attributes["preprocessing"],
            "images": images_by_split(store.samples, settings.fold),
            "receipt": store.receipt(),
        },
        "tokenizer": store.tokenizer,
    }
