"""The plan of a study: every run with its words for `train`, and what of it is there already."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmm.run import open_run, write_json
from lmm.settings import TrainSettings
from lmm.splits import CONTENT, rows_of_split
from lmm.study.grid import REPLICATES, STORE, Grid
from lmm.study.names import default_of, label, run_name
from lmm.train import require_fit
from pipeline.errors import ArtefactError, GmsLmmError, UsageError
from pipeline.store import LatentStore, open_store

PLAN_FILE = "study.json"  # of a study's folder: it says what the folder is
PLAN_FORMAT_VERSION = 1


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, in `runs/NAME` of its folder.

    setting   its place among the settings of the grid
    store     URL of the store that it is trained and scored on
    scores    what the files of its scores are called
    student   the student that it begins with: what marks it as taught; None where it has none
    train     words for `gms-lmm train`, beside store and place
    evaluate  words for `gms-lmm evaluate`, likewise
    distill   words for `gms-lmm distill`, beside the store
    """

    name: str
    setting: int
    seed: int
    fold: int | None
    store: str
    scores: str
    student: str | None
    train: list[str]
    evaluate: list[str]
    distill: list[str]
    epochs: int

    @property
    def summary_file(self) -> str:
        """What its training leaves last, seen from the study's folder."""
        return f"runs/{self.name}/summary.json"

    @property
    def scores_file(self) -> str:
        """What its evaluation leaves last, likewise."""
        return f"runs/{self.name}/evaluate/{self.scores}.json"


@dataclass(frozen=True)
class _Source:
    """A store that is read once."""

    store: LatentStore
    receipt: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a study is going to do, or has done.

    replaced  runs whose place holds one of other settings, or of what a store held before
    """

    out: Path
    grid: Grid
    runs: list[PlannedRun]
    replaced: list[str]

    def trained(self, run: PlannedRun) -> bool:
        """Whether a run is finished, and not of other settings."""
        return (self.out / run.summary_file).exists() and run.name not in self.replaced

    def done(self, run: PlannedRun) -> bool:
        """Whether a run is finished and scored, and scored after it was finished."""
        summary, scores = self.out / run.summary_file, self.out / run.scores_file
        if not (self.trained(run) and scores.exists()):
            return False
        return scores.stat().st_mtime_ns >= summary.stat().st_mtime_ns

    def label(self, setting: int) -> str:
        """What tells a setting from the others."""
        return label(self.grid.settings[setting], self.grid.varied)


def make_plan(grid: Grid, out: Path, latents: str | None) -> Plan:
    """Every run of a grid, each looked for among those that the study's folder has.

    A run is the one that has its settings and its store, whatever it is called: a grid that is
    extended, or written in another order, trains nothing again.

    latents  URL of the store, of a grid that names none
    raises   UsageError when settings and stores do not fit together; ArtefactError for a store that
             is not finished, or when stores do not hold the same images
    """
    sources = {name: _source(url) for name, url in _urls(grid, latents).items()}
    _require_same_images(grid, {name: one.store for name, one in sources.items()})
    there = dict(_runs_there(out))
    runs, replaced = [], []
    for place, settings in enumerate(grid.settings):
        source = sources[settings.get(STORE, "")]
        for fold in grid.folds:
            for seed in grid.seeds:
                wanted = _wanted(settings, fold, seed)
                _require_fit(source.store, wanted)
                name = run_name(settings, grid.varied, fold, seed)
                found = [one for one, run in there.items() if _is(run, wanted, source)]
                if not found and name in there:
                    replaced.append(name)
                runs.append(_planned(found[0] if found else name, place, grid, source, wanted))
    return Plan(out, grid, runs, replaced)


def write_plan(plan: Plan) -> None:
    """Write a plan into its study's folder: what Snakemake, answer and page go by."""
    content = {
        "format_version": PLAN_FORMAT_VERSION,
        "grid": asdict(plan.grid),
        "runs": {run.name: asdict(run) for run in plan.runs},
    }
    write_json(plan.out / PLAN_FILE, content)


def read_plan(out: Path) -> Plan:
    """The plan of a study as it was last run; raises ArtefactError when there is none."""
    try:
        content = json.loads((out / PLAN_FILE).read_text())
        found = content["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "gms-lmm study GRID --latents STORE --out DIR"
        raise ArtefactError(f"{out} is no study: {error}", fix) from error
    if found != PLAN_FORMAT_VERSION:
        raise ArtefactError(
            f"{out} has study format {found}, this version reads {PLAN_FORMAT_VERSION}",
            "run the study again: its runs are kept",
        )
    runs = [PlannedRun(**run) for run in content["runs"].values()]
    return Plan(out, Grid(**content["grid"]), runs, [])


def _urls(grid: Grid, latents: str | None) -> dict[str, str]:
    if grid.stores and latents:
        raise UsageError(
            f"the grid {grid.name} names its stores, and --latents {latents} is another",
            "leave --latents out, or take stores out of the grid",
        )
    if not grid.stores and not latents:
        raise UsageError(
            f"the grid {grid.name} names no store", "--latents STORE, or stores: in the grid"
        )
    used = {one[STORE] for one in grid.settings if STORE in one}
    given = {name: url for name, url in grid.stores.items() if name in used}
    urls = given or {"": str(latents)}
    # Snakemake works in the study's folder.
    return {name: url if "://" in url else str(Path(url).resolve()) for name, url in urls.items()}


def _source(url: str) -> _Source:
    store = open_store(url)
    store.require_complete()
    return _Source(store, store.receipt() or {})


def _require_same_images(grid: Grid, stores: Mapping[str, LatentStore]) -> None:
    """Raise ArtefactError unless the stores hold the same images to be scored, at one size."""
    (first_name, first), *others = stores.items()
    for name, store in others:
        if store.size != first.size:
            raise ArtefactError(
                f"the stores are of two sizes, {first_name} of {first.size} px and {name} of "
                f"{store.size} px: scores of masks of two sizes do not compare",
                "encode them at one --size",
            )
        if _scored(grid, store) != _scored(grid, first):
            raise ArtefactError(
                f"the stores {first_name} and {name} hold other images in split {grid.split}: "
                "their scores do not compare",
                "encode both from one manifest",
            )


def _scored(grid: Grid, store: LatentStore) -> list[tuple[Any, ...]]:
    """Names and content of the images that are scored."""
    rows = [rows_of_split(store.samples, grid.split, fold) for fold in grid.folds]
    columns = ("sample_id", *CONTENT)
    return sorted(row for one in rows for row in store.samples[one].select(columns).rows())


def _runs_there(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the runs in a study's folder say of themselves, by name; a damaged one says nothing."""
    for file in sorted((out / "runs").glob("*/run.json")):
        try:
            yield file.parent.name, open_run(file.parent).description
        except (GmsLmmError, ValueError):
            yield file.parent.name, {"settings": None, "store": None}


def _wanted(settings: Mapping[str, Any], fold: int | None, seed: int) -> dict[str, Any]:
    """The settings of a run as its run.json is to have them; without `precision` where auto."""
    wanted = {**settings, "fold": fold, "seed": seed}
    wanted.pop(STORE, None)
    if wanted["precision"] == "auto":
        del wanted["precision"]
    return wanted


def _is(run: Mapping[str, Any], wanted: Mapping[str, Any], source: _Source) -> bool:
    """Whether a run in the study's folder is the one that is wanted."""
    if not run["settings"] or (run["store"] or {}).get("receipt") != source.receipt:
        return False
    return all(run["settings"].get(name) == value for name, value in wanted.items())


def _require_fit(store: LatentStore, wanted: Mapping[str, Any]) -> None:
    """Raise as `lmm.train.require_fit` does, before any run begins."""
    settings = TrainSettings(**wanted)
    require_fit(store, settings)
    rows_of_split(store.samples, "train", settings.fold)


def _planned(
    name: str, place: int, grid: Grid, source: _Source, wanted: Mapping[str, Any]
) -> PlannedRun:
    store, settings, fold = source.store, TrainSettings(**wanted), wanted["fold"]
    seen = grid.split == settings.select_on
    left_out = "" if fold is None else f"-fold{fold}"
    # A store that has changed wants another student.
    state = hashlib.sha256(json.dumps([store.url, source.receipt]).encode()).hexdigest()[:8]
    student = f"{store.name}-{state}{left_out}" if settings.has_student else None
    return PlannedRun(
        name=name,
        setting=place,
        seed=wanted["seed"],
        fold=fold,
        store=store.url,
        scores=f"{store.name}-{grid.split}{'-seen' if seen else ''}",
        student=student,
        train=_words(wanted),
        evaluate=["--split", grid.split, *(["--allow-seen"] if seen else [])],
        distill=_words({key: wanted.get(key) for key in ("precision", "fold")}),
        epochs=settings.epochs,
    )


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of the command line; what is as by default needs no word."""
    words = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words += [option]
        elif (
            value is not None
            and value is not False
            and (name in REPLICATES or value != default_of(name))
        ):
            words += [option, str(value)]
    return words
