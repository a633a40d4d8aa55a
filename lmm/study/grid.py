"""A grid: what a study varies, at which seeds, and against which baseline; read and checked."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lmm.settings import Setting, TrainSettings, known_settings
from lmm.splits import FOLD
from pipeline.errors import InputError, UsageError

STORE = "store"  # what a setting calls the store that it is trained on
REPLICATES = ("seed", "fold")  # runs that differ by these alone are of one setting
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
_STORE_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$"}
_UNKNOWN = "additionalProperties"
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """What a study compares.

    settings  one for each row of its answer: every setting of `train` with its value but seed and
              fold, as given or by default, and `store`, the store's name, where stores have names
    varied    names of the settings in which these differ, in the order of TrainSettings
    baseline  place of the one that the others are compared with
    seeds     a run of every setting for each
    folds     likewise; [None] where nothing is left out of train
    stores    URL by name; empty where there is one store, given on the command line
    split     what the runs are scored on: test, val, or fold where there are folds
    """

    name: str
    settings: list[dict[str, Any]]
    varied: list[str]
    baseline: int
    seeds: list[int]
    folds: list[int | None]
    stores: dict[str, str]
    split: str


def grid_schema() -> dict[str, Any]:
    """What a grid file may say, as a JSON schema; its settings are those of `lmm.settings`."""
    one = {name: _schema_of(setting) for name, setting in known_settings().items()}
    del one["seed"]
    one |= {STORE: _STORE_NAME}
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
    names = settings[0].keys()
    varied = [name for name in names if any(one[name] != settings[0][name] for one in settings)]
    return Grid(
        name=path.stem,
        settings=settings,
        varied=varied,
        baseline=_baseline(path, content["baseline"], settings, varied),
        seeds=content.get("seeds", [0]),
        folds=folds,
        stores=stores,
        split=content.get("split", "test") if folds == [None] else FOLD,
    )


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
    values: dict[str, Any] = {}
    for one in fields(TrainSettings):
        if one.name in REPLICATES:
            continue
        value, kind = said.get(one.name, one.default), known_settings()[one.name].kind
        values[one.name] = float(value) if kind is float and value is not None else value
    # What the hardware computes in is for each run to find out, as gms-lmm train does.
    values["precision"] = said.get("precision", "auto")
    TrainSettings(**{**values, "precision": _any_precision(values["precision"])})
    if not stores and STORE not in said:
        return values
    if said.get(STORE) not in stores:
        known = ", ".join(stores) or "none"
        raise UsageError(
            f"{path}: a setting has the store {said.get(STORE)}, and stores names {known}",
            "name it under stores, and say store in vary, runs or fixed",
        )
    return {STORE: said[STORE], **values}


def _any_precision(precision: str) -> str:
    default: str = TrainSettings.precision
    return default if precision == "auto" else precision


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
