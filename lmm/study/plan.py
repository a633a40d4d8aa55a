"""The plan of a study: every run with its words for `train`, and what of it is there already."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmm.baseline.network import build_network
from lmm.baseline.settings import BaselineSettings
from lmm.run import open_run, write_json
from lmm.settings import TrainSettings
from lmm.splits import rows_of_split
from lmm.study.grid import LMM, MODEL, REPLICATES, STORE, Grid, default_of, settings_from
from lmm.study.names import label, run_name
from lmm.study.sources import Source, open_sources
from lmm.train import require_fit
from pipeline.errors import ArtefactError, GmsLmmError
from pipeline.store import LatentStore

PLAN_FILE = "study.json"  # of a study's folder: it says what the folder is
PLAN_FORMAT_VERSION = 2


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, in `runs/NAME` of its folder.

    setting   its place among the settings of the grid
    store     URL of the store that it is scored on, and trained unless it is a baseline
    scores    what the files of its scores are called
    student   the student that it begins with: what marks it as taught; None where it has none
    train     words for `gms-lmm`, the command and what it is trained on first, beside its place
    evaluate  words for `gms-lmm evaluate`, beside store and place
    distill   words for `gms-lmm distill`, beside the store
    epochs    None where they are as many as fit into a number of seconds
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
    epochs: int | None

    @property
    def summary_file(self) -> str:
        """What its training leaves last, seen from the study's folder."""
        return f"runs/{self.name}/summary.json"

    @property
    def scores_file(self) -> str:
        """What its evaluation leaves last, likewise."""
        return f"runs/{self.name}/evaluate/{self.scores}.json"


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

    latents  as for `lmm.study.sources.open_sources`
    raises   as that does; UsageError when settings and stores do not fit together
    """
    sources = open_sources(grid, latents)
    there = dict(_runs_there(out))
    runs: list[PlannedRun] = []
    replaced: list[str] = []
    for place, settings in enumerate(grid.settings):
        source = sources[settings.get(STORE, "")]
        for fold in grid.folds:
            made_from = source.made_from(settings[MODEL], fold)
            _require_fit(source, _wanted(settings, fold, grid.seeds[0], source.store))
            for seed in grid.seeds:
                wanted = _wanted(settings, fold, seed, source.store)
                name = run_name(settings, grid.varied, fold, seed)
                found = [one for one, run in there.items() if _is(run, wanted, made_from)]
                if not found and name in there:
                    replaced.append(name)
                runs.append(_planned(found[0] if found else name, place, grid, source, wanted))
    return Plan(out, grid, _with_ceilings(runs), replaced)


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


def _with_ceilings(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Where stores are compared, one run of each is asked what its tokenizer alone scores, too."""
    first = {run.store: run.name for run in reversed(runs) if run.train[0] == "train"}
    if len(first) < 2:
        return list(runs)
    return [
        replace(run, evaluate=[*run.evaluate, "--ceiling"]) if run.name in first.values() else run
        for run in runs
    ]


def _runs_there(out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the runs in a study's folder say of themselves, by name; a damaged one says nothing."""
    for file in sorted((out / "runs").glob("*/run.json")):
        try:
            yield file.parent.name, open_run(file.parent).description
        except (GmsLmmError, ValueError):
            yield file.parent.name, {"settings": None, "store": None}


def _wanted(
    settings: Mapping[str, Any], fold: int | None, seed: int, store: LatentStore
) -> dict[str, Any]:
    """The settings of a run as its run.json is to have them, and its model.

    Without `precision` where auto, and `epochs` where seconds decide them. A baseline sees images
    of the store's size in the views that the store has.
    """
    wanted = {**settings, "fold": fold, "seed": seed}
    wanted.pop(STORE, None)
    if wanted["precision"] == "auto":
        del wanted["precision"]
    if wanted[MODEL] != LMM:
        wanted |= {"size": store.size, "view_seed": store.attributes["seed"]}
        wanted["views"] = wanted["views"] or store.views
    return wanted


def _is(
    run: Mapping[str, Any], wanted: Mapping[str, Any], made_from: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether a run in the study's folder is the one that is wanted."""
    of_lmm = wanted[MODEL] == LMM
    settings = {name: value for name, value in wanted.items() if not (of_lmm and name == MODEL)}
    return all(
        (run.get(part) or {}).get(name) == value
        for part, said in {"settings": settings, **made_from}.items()
        for name, value in said.items()
    )


def _require_fit(source: Source, wanted: Mapping[str, Any]) -> None:
    """Raise as `lmm.train.require_fit` does, before any run begins."""
    settings = settings_from(wanted)
    rows_of_split(source.store.samples, "train", settings.fold)
    if isinstance(settings, BaselineSettings):
        assert source.images is not None, "read_grid has asked for a manifest"
        rows_of_split(source.images.samples, "train", settings.fold)
        build_network(settings.model, settings.size)
    else:
        require_fit(source.store, settings)


def _planned(
    name: str, place: int, grid: Grid, source: Source, wanted: Mapping[str, Any]
) -> PlannedRun:
    store, settings, fold = source.store, settings_from(wanted), wanted["fold"]
    seen = grid.split == settings.select_on
    left_out = "" if fold is None else f"-fold{fold}"
    # A store that has changed wants another student.
    state = hashlib.sha256(json.dumps([store.url, source.receipt]).encode()).hexdigest()[:8]
    taught = isinstance(settings, TrainSettings) and settings.has_student
    data = ["train", "--latents", store.url]
    if isinstance(settings, BaselineSettings):
        data = ["baseline", str(Path(str(grid.manifest)).resolve())]
    return PlannedRun(
        name=name,
        setting=place,
        seed=wanted["seed"],
        fold=fold,
        store=store.url,
        scores=f"{store.name}-{grid.split}{'-seen' if seen else ''}",
        student=f"{store.name}-{state}{left_out}" if taught else None,
        train=[*data, *_words(wanted)],
        evaluate=["--split", grid.split, *(["--allow-seen"] if seen else [])],
        distill=_words({key: wanted.get(key) for key in (MODEL, "precision", "fold")}),
        epochs=wanted.get("epochs"),
    )


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of the command line; what is as by default needs no word."""
    words, model = [], settings[MODEL]
    for name, value in settings.items():
        if name == MODEL and value == LMM:
            continue
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words += [option]
        elif (
            value is not None
            and value is not False
            and (name in REPLICATES or value != default_of(name, model))
        ):
            words += [option, str(value)]
    return words
