"""What a run was made from, and the commands that make it again, as the report says them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmm.baseline.pixels import Images
from lmm.baseline.settings import FRESH
from lmm.run import Run
from pipeline.store import LatentStore


def facts(run: Run, images: Images) -> dict[str, str]:
    """What was done, with what: names, counts, versions, digests.

    images  a store; of a baseline also a manifest
    """
    if run.is_baseline:
        return _facts_of_baseline(run)
    assert isinstance(images, LatentStore), "of a model of latents"
    return _facts_of_latents(run, images)


def _facts_of_latents(run: Run, store: LatentStore) -> dict[str, str]:
    receipt, tokenizer = _receipt(run, store), store.tokenizer
    return {
        "Data": f"{store.name}: {_counted(receipt['by_split'])}",
        "Tokenizer": f"{tokenizer['name']}, {tokenizer['kind']}, frozen",
        "Views": f"{receipt['views']} a sample at {store.size} × {store.size} px",
        **(_imported(run) if run.imported else _trained(run)),
        "Software": _software(run),
        "Tokenizer digest": tokenizer["digest"],
        "Manifest digest": receipt["manifest_digest"],
        "Store digest": receipt["config_digest"],
    }


def _facts_of_baseline(run: Run) -> dict[str, str]:
    manifest, settings = run.description["manifest"], run.description["settings"]
    views = f"{settings['views']} a sample"
    if settings["views"] == FRESH:
        views = "a new one of each sample in every epoch"
    return {
        "Data": f"{Path(manifest['url']).stem}: {_counted(manifest['by_split'])}",
        "Views": f"{views}, at {settings['size']} × {settings['size']} px",
        **_trained(run),
        "Software": _software(run),
        "Manifest digest": manifest["digest"],
    }


def _counted(by_split: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in by_split.items())
    return f"{sum(by_split.values())} samples ({counts})"


def _software(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run.description["software"].items())


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
    chosen = "kept, chosen by no image"
    if summary["select_on"] != "none":
        chosen = f"chosen by DSC on {summary['select_on']}"
    return {
        "Model": f"{_model(run)}, {summary['parameters']:,} parameters",
        "Settings": ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in settings.items()),
        "Training": f"{summary['steps']:,} steps in {summary['seconds']:,.0f} s; epoch "
        f"{summary['best_epoch']} of {summary['epochs']} {chosen}",
    }


def _model(run: Run) -> str:
    if run.is_baseline:
        return f"{run.description['model']['name']}, {run.description['model']['class']}"
    return "latent mapping model"


def commands(run: Run, images: Images, scores: Mapping[str, Any]) -> list[str]:
    """The commands that do it again; MANIFEST is what `gms-lmm ingest` writes."""
    if run.is_baseline:
        return [_making(run), _scoring(run, scores)]
    assert isinstance(images, LatentStore), "of a model of latents"
    return [_encoding(images), _making(run), _scoring(run, scores)]


def _encoding(store: LatentStore) -> str:
    made = store.attributes
    encode: dict[str, Any] = {
        "tokenizer": made["tokenizer"]["name"],
        "views": made["views"],
        "size": store.size,
        "seed": made["seed"],
        "precision": made["preprocessing"]["precision"],
    }
    return f"gms-lmm encode MANIFEST {shlex.quote(store.url)}{_options(encode)}"


def _scoring(run: Run, scores: Mapping[str, Any]) -> str:
    where = {"latents": scores["store"], "manifest": scores.get("manifest")}
    evaluate: dict[str, Any] = {"run": run.path, **where, "split": scores["split"]}
    evaluate["hd95"] = scores["hd95_definition"]
    evaluate |= {name: name in scores for name in ("native", "ceiling")}
    evaluate["allow_seen"] = any((scores["seen"] or {}).values())
    return f"gms-lmm evaluate{_options(evaluate)}"


def _making(run: Run) -> str:
    if run.imported:
        source = shlex.quote(run.description["imported_from"])
        return f"gms-lmm import-checkpoint {source}{_options({'out': run.path})}"
    assert run.data is not None
    url, settings = run.data["url"], {"out": run.path, **run.description["settings"]}
    if run.is_baseline:
        return f"gms-lmm baseline {shlex.quote(url)}{_options(settings)}"
    settings = {"latents": url, **settings}
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
