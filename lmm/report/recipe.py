"""What a run was made from, and the commands that make it again, as the report says them."""

import shlex
from collections.abc import Mapping
from typing import Any

from lmm.run import Run
from pipeline.store import LatentStore


def facts(run: Run, store: LatentStore) -> dict[str, str]:
    """What was done, with what: names, counts, versions, digests."""
    receipt, tokenizer = _receipt(run, store), store.tokenizer
    counts = ", ".join(f"{count} {split}" for split, count in receipt["by_split"].items())
    return {
        "Data": f"{store.name}: {receipt['samples']} samples ({counts})",
        "Tokenizer": f"{tokenizer['name']}, {tokenizer['kind']}, frozen",
        "Views": f"{receipt['views']} a sample at {store.size} × {store.size} px",
        **(_imported(run) if run.imported else _trained(run)),
        "Software": ", ".join(f"{k} {v}" for k, v in run.description["software"].items()),
        "Tokenizer digest": tokenizer["digest"],
        "Manifest digest": receipt["manifest_digest"],
        "Store digest": receipt["config_digest"],
    }


def _receipt(run: Run, store: LatentStore) -> dict[str, Any]:
    """Of the store trained on, as it was then; of the one scored on, for imported weights."""
    if not run.imported:
        receipt: dict[str, Any] = run.description["store"]["receipt"]
        return receipt
    found = store.receipt()
    assert found is not None, "its latents have been read"
    return found


def _imported(run: Run) -> dict[str, str]:
    return {
        "Model": f"latent mapping model, {run.model().parameter_count:,} parameters",
        "Training": f"imported from {run.description['imported_from']}",
    }


def _trained(run: Run) -> dict[str, str]:
    summary, settings = run.summary(), _given(run.description["settings"])
    return {
        "Model": f"latent mapping model, {summary['parameters']:,} parameters",
        "Settings": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings.items()),
        "Training": f"{summary['steps']:,} steps in {summary['seconds']:,.0f} s; epoch "
        f"{summary['best_epoch']} of {summary['epochs']} chosen by DSC on {summary['select_on']}",
    }


def commands(run: Run, store: LatentStore, scores: Mapping[str, Any]) -> list[str]:
    """The commands that do it again; MANIFEST is what `gms-lmm ingest` writes."""
    made = store.attributes
    encode: dict[str, Any] = {
        "tokenizer": made["tokenizer"]["name"],
        "views": made["views"],
        "size": store.size,
        "seed": made["seed"],
        "precision": made["preprocessing"]["precision"],
    }
    evaluate: dict[str, Any] = {"run": run.path, "latents": store.url, "split": scores["split"]}
    evaluate["hd95"] = scores["hd95_definition"]
    evaluate |= {name: name in scores for name in ("native", "ceiling")}
    evaluate["allow_seen"] = any((scores["seen"] or {}).values())
    return [
        f"gms-lmm encode MANIFEST {shlex.quote(store.url)}{_options(encode)}",
        _making(run),
        f"gms-lmm evaluate{_options(evaluate)}",
    ]


def _making(run: Run) -> str:
    if run.imported:
        source = shlex.quote(run.description["imported_from"])
        return f"gms-lmm import-checkpoint {source}{_options({'out': run.path})}"
    latents = run.description["store"]["url"]
    settings = {"latents": latents, "out": run.path, **run.description["settings"]}
    return f"gms-lmm train{_options(settings)}"


def _options(settings: Mapping[str, Any]) -> str:
    """Settings as options of a command: a switch that is on has no value."""
    words = ""
    for key, value in _given(settings).items():
        of = "" if value is True else f" {shlex.quote(str(value))}"
        words += f" --{key.replace('_', '-')}{of}"
    return words


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those left open and switches that are off."""
    return {k: v for k, v in settings.items() if v is not None and v is not False}
