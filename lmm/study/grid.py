"""A grid: what a study varies, at which seeds, and against which baseline; read and checked."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmm.baseline.settings import FRESH, NETWORKS, BaselineSettings
from lmm.settings import Setting, TrainSettings, known_settings
from lmm.splits import FOLD
from pipeline.errors import InputError, UsageError

STORE = "store"  # what a setting calls the store that it is trained on
MODEL = "model"  # and the LMM, or the baseline's network
LMM = "lmm"
REPLICATES = ("seed", "fold")  # runs that differ by these alone are of one setting
OF_STORE = ("size", "view_seed")  # settings of a baseline that a study takes from the store
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
_STORE_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$"}
_UNKNOWN = "additionalProperties"
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """What a study compares.

    settings  one for each row of its answer: `model`, and every setting of `train`, or for a
              network of `baseline`, with its value but seed and fold, as given or by default, and
              `store`, the store's name, where stores have names
    varied    names of the settings in which these differ, in the order of TrainSettings
    baseline  place of the one that the others are compared with
    seeds     a run of every setting for each
    folds     likewise; [None] where nothing is left out of train
    stores    URL by name; empty where there is one store, given on the command line
    manifest  path of what baselines are trained on; None where there are none
    split     what the runs are scored on: test, val, or fold where there are folds
    """

    name: str
    settings: list[dict[str, Any]]
    varied: list[str]
    baseline: int
    seeds: list[int]
    folds: list[int | None]
    stores: dict[str, str]
    manifest: str | None
    split: str

    @property
    def compares_stores(self) -> bool:
        """Whether its settings are of several stores."""
        return STORE in self.varied

    @property
    def has_peers(self) -> bool:
        """Whether baselines are among its models."""
        return any(one[MODEL] != LMM for one in self.settings)


def grid_schema() -> dict[str, Any]:
    """What a grid file may say, as a JSON schema; its settings are those of train and baseline."""
    of_baseline = known_settings(BaselineSettings)
    known = {name: of_baseline[name] for name in of_baseline.keys() - {*OF_STORE}}
    every = {**known, **known_settings()}
    one = {name: _schema_of(setting) for name, setting in every.items()}
    del one["seed"]
    one |= {STORE: _STORE_NAME, MODEL: {"enum": [LMM, *NETWORKS]}}
    one["views"] = {"anyOf": [one["views"], {"const": FRESH}]}
    several = {name: _list_of(schema) for name, schema in one.items()}
    single = {name: schema for name, schema in one.items() if name != "fold"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_object_of(
            {
                "vary": {**_object_of(several), "minProperties": 1},
                "runs": {"type": "array", "items": _object_of(single), "minItems": 1},
                "seeds": _list_of({"type": "integer", "minimum": 0}),
                "fixed": _object_of(single),
                "baseline": _object_of(single),
                "stores": {
                    "type": "object",
                    "propertyNames": _STORE_NAME,
                    "additionalProperties": {"type": "string"},
                    "minProperties": 1,
                },
                "manifest": {"type": "string"},
                "split": {"enum": ["test", "val"]},
            }
        ),
        "required": ["baseline"],
    }


def read_grid(path: Path) -> Grid:
    """The grid in a YAML file.

    vary      values of each setting: all of their combinations
    runs      settings one by one, beside or in place of these
    fixed     what all have in common
    baseline  as much as tells one of them from the others
    seeds     [0] where none are said; `fold` in vary repeats every setting likewise
    stores    paths relative to the grid's folder, or URLs; `store` in vary is of their names
    manifest  relative likewise

    raises  InputError for a file that is none, or a grid that says what none may; UsageError for
            settings out of range or that do not fit together
    """
    content = _checked(path)
    fixed, vary = content.get("fixed", {}), dict(content.get("vary", {}))
    folds = vary.pop("fold", [None])
    listed = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    listed = (listed if "vary" in content else []) + content.get("runs", [])
    stores = {name: _place(path, url) for name, url in content.get("stores", {}).items()}
    settings: list[dict[str, Any]] = []
    for one in listed:
        full = _full(path, {**fixed, **one}, stores)
        if full not in settings:
            settings.append(full)
    varied = _varied(settings)
    manifest = content.get("manifest")
    grid = Grid(
        name=path.stem,
        settings=settings,
        varied=varied,
        baseline=_baseline(path, content["baseline"], settings, varied),
        seeds=content.get("seeds", [0]),
        folds=folds,
        stores=stores,
        manifest=manifest and _place(path, manifest),
        split=content.get("split", "test") if folds == [None] else FOLD,
    )
    if grid.has_peers and not manifest:
        raise UsageError(f"{path}: a baseline is trained on a manifest", "manifest: M.parquet")
    return grid


def _checked(path: Path) -> dict[str, Any]:
    """What a grid file says, all of it allowed."""
    try:
        import jsonschema
        import yaml
    except ImportError as error:
        raise workflow_missing("yaml and jsonschema") from error

    # YAML 1.1 takes 1e-3 for a word; 1.2 and people take it for a number.
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))
    try:
        content = yaml.load(path.read_bytes(), loader)
    except (OSError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())
        raise InputError(f"no grid can be read from {path}: {words}", "give a YAML file") from error
    faults = sorted(
        jsonschema.Draft202012Validator(grid_schema()).iter_errors(content),
        key=jsonschema.exceptions.relevance,
    )
    if faults:
        worst = faults[-1]
        place = ".".join(map(str, worst.absolute_path)) or "the grid"
        known = worst.schema.get("properties", ()) if worst.validator == _UNKNOWN else ()
        fix = f"one of {', '.join(known)}" if known else "config/studies has examples"
        raise InputError(f"{path}: {place}: {worst.message}", fix)
    if not content.keys() & {"vary", "runs"}:
        raise InputError(f"{path} says neither vary nor runs", "config/studies has examples")
    return dict(content)


def workflow_missing(what: str) -> UsageError:
    """The error that says how to install what a study needs."""
    return UsageError(f"a study needs {what}", "pip install 'gms-lmm[workflow]'")


def _full(path: Path, said: Settings, stores: Mapping[str, str]) -> dict[str, Any]:
    """Every setting with its value; raises UsageError for one that no run can have."""
    model = said.get(MODEL, LMM)
    known = settings_of(model)
    names = [name for name in known if name not in (*REPLICATES, *OF_STORE, MODEL)]
    if foreign := said.keys() - {*names, MODEL, STORE}:
        raise UsageError(
            f"{path}: {model} has no setting {', '.join(sorted(foreign))}",
            "say it in runs, of those that have it",
        )
    if model == LMM and said.get("views") == FRESH:
        raise UsageError(f"{path}: the views of a store are those that it has", "views: a number")
    values: dict[str, Any] = {MODEL: model}
    for name in names:
        value = said.get(name, default_of(name, model))
        values[name] = float(value) if known[name].kind is float and value is not None else value
    if values.get("seconds") is not None:
        del values["epochs"]  # as many as fit: for each run to find out
    settings_from(values)
    if not stores and STORE not in said:
        return values
    if said.get(STORE) not in stores:
        named = ", ".join(stores) or "none"
        raise UsageError(
            f"{path}: a setting has the store {said.get(STORE)}, and stores names {named}",
            "name it under stores, and say store in vary, runs or fixed",
        )
    return {STORE: said[STORE], **values}


def settings_of(model: str) -> dict[str, Setting]:
    """The settings that runs of a model have."""
    return known_settings(TrainSettings if model == LMM else BaselineSettings)


def default_of(name: str, model: str) -> Any:
    """What a setting of a model is where a grid does not say it."""
    if name == MODEL:
        return LMM
    # What the hardware computes in is for each run to find out, as gms-lmm train does.
    if name == "precision":
        return "auto"
    if name == STORE:
        return None
    if model == LMM:
        return getattr(TrainSettings, name)
    of_model = {"lr": NETWORKS[model].lr, "views": None}
    return of_model[name] if name in of_model else getattr(BaselineSettings, name)


def settings_from(values: Settings) -> TrainSettings | BaselineSettings:
    """What a run is asked to do, as far as a grid decides; raises UsageError out of range.

    What it leaves to the store or the machine is as by default.
    """
    said = {name: value for name, value in values.items() if name != STORE}
    if said.get("precision") == "auto":
        del said["precision"]
    if said[MODEL] == LMM:
        del said[MODEL]
        return TrainSettings(**said)
    if said["views"] is None:
        del said["views"]
    return BaselineSettings(**said)


def _varied(settings: Sequence[Settings]) -> list[str]:
    """Names of what differs among the settings that have it, each where it first comes."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({one[name] for one in settings if name in one}) > 1]


def _place(path: Path, url: str) -> str:
    """A store's path as seen from where the grid is, or its URL."""
    return url if "://" in url else str(path.parent / url)


def _baseline(
    path: Path, said: Settings, settings: Sequence[Settings], varied: Sequence[str]
) -> int:
    fits = [
        place
        for place, one in enumerate(settings)
        if all(one.get(name) == value for name, value in said.items())
    ]
    if len(fits) != 1:
        raise UsageError(
            f"{path}: the baseline fits {len(fits)} of {len(settings)} settings, not one",
            f"say of it what tells it from the others: {', '.join(varied) or 'a setting'}",
        )
    return fits[0]


def _schema_of(setting: Setting) -> dict[str, Any]:
    """What one setting may be; as config/schema.yaml has it."""
    schema: dict[str, Any] = {"type": _TYPES[setting.kind]}
    if setting.choices and not setting.some:
        schema = {"enum": [*(["auto"] if setting.automatic else []), *setting.choices]}
    limits = {
        "minimum": setting.minimum,
        "exclusiveMinimum": setting.above,
        "maximum": setting.maximum,
    }
    return schema | {name: limit for name, limit in limits.items() if limit is not None}


def _list_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1, "uniqueItems": True}


def _object_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, _UNKNOWN: False}
