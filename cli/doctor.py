"""gms-lmm doctor: whether this machine can encode and train, and what to do where it cannot."""

import importlib.metadata
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from packaging.requirements import Requirement

from cli.options import emit, json_option
from pipeline.errors import CheckError

OK, ASIDE, MISSING = "ok", "–", "missing"

PYTHON = (3, 11)
# Below these the work still begins, but may not end.
MEMORY_BYTES, DISK_BYTES = 4e9, 2e9
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Check:
    """One line: ok; – for what one can do without; missing for what one cannot."""

    name: str
    state: str
    found: str
    fix: str = ""


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check whether this machine is ready to encode and train.

    A line says ok, – (can be done without) or missing (cannot); exit code 5 when something is
    missing. Nothing is downloaded.

    \b
    Example:
      gms-lmm doctor
    """
    checks = [
        check_python(),
        *check_packages(),
        *check_devices(),
        check_memory(),
        check_disk(),
        *check_tokenizers(),
    ]
    missing = [check for check in checks if check.state == MISSING]
    result = {"ready": not missing, "checks": [asdict(check) for check in checks]}
    emit(result, as_json, lambda: _show(checks))
    if missing:
        names = ", ".join(check.name for check in missing)
        raise CheckError(f"this machine is not ready: {names}", missing[0].fix)


def check_python() -> Check:
    found = sys.version.split()[0]
    if sys.version_info >= PYTHON:
        return Check("python", OK, found)
    return Check("python", MISSING, found, "install Python {}.{} or newer".format(*PYTHON))


def check_packages() -> Iterator[Check]:
    """Every package that gms-lmm declares, held against the versions it declares."""
    try:
        requirements = importlib.metadata.requires("gms-lmm") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("gms-lmm", MISSING, "not installed", "pip install --editable .")
        return
    extras = importlib.metadata.metadata("gms-lmm").get_all("Provides-Extra") or []
    named: set[str] = set()
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        extra = next((name for name in extras if marker and marker.evaluate({"extra": name})), None)
        if extra != "dev" and requirement.name not in named:  # extras may share a package
            named.add(requirement.name)
            yield _check_package(requirement, extra)


def _check_package(requirement: Requirement, extra: str | None) -> Check:
    name, bounds = requirement.name, requirement.specifier
    state = ASIDE if extra else MISSING
    fix = f"pip install 'gms-lmm[{extra}]'" if extra else f"pip install '{name}{bounds}'"
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, state, f"not installed, wanted is {bounds}", fix)
    if not bounds.contains(found, prereleases=True):
        return Check(name, state, f"{found}, wanted is {bounds}", fix)
    return Check(name, OK, found)


def check_devices() -> Iterator[Check]:
    """What tensors can be put on, and in which arithmetic."""
    try:
        import torch

        from pipeline.device import choose_device, choose_precision
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        yield Check("device", MISSING, f"torch cannot be imported: {reason}", "reinstall torch")
        return
    device = choose_device("auto")
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        yield Check("device", OK, f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB")
    elif device.type == "mps":
        yield Check("device", OK, "Apple GPU")
    else:
        found = f"CPU alone, threads: {torch.get_num_threads()}"
        yield Check("device", ASIDE, found, "encode and train on a machine with a GPU")
    if choose_precision("auto", device) == "bf16":
        yield Check("bf16", OK, "in hardware")
    else:
        yield Check("bf16", ASIDE, "not in hardware: fp32 is used", "nothing; it is only slower")


def check_memory() -> Check:
    free = free_memory_bytes()
    if free is None:
        return Check("memory", ASIDE, "this system does not say how much is free", "look yourself")
    found = f"{free / 1e9:.1f} GB free"
    if free >= MEMORY_BYTES:
        return Check("memory", OK, found)
    return Check("memory", ASIDE, found, f"free {MEMORY_BYTES / 1e9:.0f} GB, or use --batch-size 1")


def free_memory_bytes() -> int | None:
    """What a new process can have without swapping, or None where the system does not say."""
    # Not sysconf's free pages: those leave out what the kernel's file cache would give back.
    if MEMINFO.exists():
        available = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
        return int(available[1]) * 1024 if available else None
    return None


def check_disk() -> Check:
    free = shutil.disk_usage(".").free
    found = f"{free / 1e9:.1f} GB free here"
    if free >= DISK_BYTES:
        return Check("disk", OK, found)
    return Check("disk", ASIDE, found, "put the store on another disk")


def check_tokenizers() -> Iterator[Check]:
    """Where each tokenizer's weights would come from; missing when none can be had at all."""
    try:
        from pipeline.weights import HUB_IDS, hub_reachable, in_cache, packaged

        cached = {name: in_cache(hub_id) for name, hub_id in HUB_IDS.items()}
    except ImportError as error:
        yield Check("tokenizers", MISSING, str(error), "pip install huggingface-hub")
        return
    online = hub_reachable()
    if packaged():
        yield Check("tiny-vae", OK, "in this package")
    else:
        state = ASIDE if online or any(cached.values()) else MISSING
        yield Check("tiny-vae", state, "not in this package", "pip install gms-lmm again")
    for name, place in cached.items():
        if place:
            yield Check(name, OK, str(place))
        elif online:
            yield Check(name, ASIDE, "not cached", "nothing; downloaded when first used")
        else:
            get_it = f"hf download {HUB_IDS[name]} --local-dir DIR elsewhere, then --tokenizer DIR"
            yield Check(name, ASIDE, "not cached, and the hub cannot be reached", get_it)


def _show(checks: list[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        colour = {OK: "green", ASIDE: "yellow", MISSING: "red"}[check.state]
        state = click.style(f"{check.state:{len(MISSING)}}", fg=colour)
        fix = f"  → {check.fix}" if check.fix else ""
        click.echo(f"{state}  {check.name:{width}}  {check.found}{fix}")
