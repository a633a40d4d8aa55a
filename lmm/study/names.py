"""Names of runs: settings, as far as they vary or are not the default, then fold and seed."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from lmm.study.grid import MODEL, default_of

LONGEST = 200  # of 255 bytes that file systems allow


def run_name(
    settings: Mapping[str, Any], varied: Collection[str], fold: int | None, seed: int
) -> str:
    """`loss=lm,width=16,s0`: decided by the settings, another for others, fit for a file's name.

    settings  as `Grid.settings` has them
    varied    names that are said in any case, so that the runs of a study read alike
    """
    parts = [
        f"{name}={_word(value)}"
        for name, value in settings.items()
        if name in varied or value != default_of(name, settings[MODEL])
    ]
    parts += [f"fold{fold}"] if fold is not None else []
    name = ",".join([*parts, f"s{seed}"])
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(json.dumps([dict(settings), fold, seed]).encode()).hexdigest()
    return f"{name[: LONGEST - 9]}~{digest[:8]}"


def label(settings: Mapping[str, Any], varied: Collection[str]) -> str:
    """What tells a setting from the others of its study: `loss lm, width 16`."""
    said = [f"{name} {shown(settings[name])}" for name in varied if name in settings]
    return ", ".join(said) or "as it is"


def shown(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "all"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _word(value: Any) -> str:
    """A value without what separates: commas in seg_levels, capitals in true and false."""
    words = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    return words.replace(",", "+")
