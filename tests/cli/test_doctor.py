"""What the doctor says of machines that are ready, of some that are not, and of odd ones."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from packaging.requirements import Requirement

import cli.doctor as doctor
from cli.main import main


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *words])


def by_name(result: Result) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


@pytest.fixture(autouse=True)
def well_equipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """tiny-vae is packaged, nothing is cached, and the hub is far; no test touches the network."""
    monkeypatch.setattr("pipeline.weights.packaged", lambda: True)
    monkeypatch.setattr("pipeline.weights.in_cache", lambda _: None)
    monkeypatch.setattr("pipeline.weights.hub_reachable", lambda: False)


def test_ready_machine_is_exit_0_with_nothing_on_stderr() -> None:
    result = run("--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["ready"] is True
    checks = by_name(result)
    assert checks["torch"]["found"] == torch.__version__
    assert checks["zarr"] == {
        "name": "zarr",
        "state": "ok",
        "found": importlib.metadata.version("zarr"),
        "fix": "",
    }
    assert {"python", "device", "bf16", "memory", "disk", "tiny-vae", "sd-vae"} <= checks.keys()


def test_every_line_that_is_not_ok_says_what_to_do() -> None:
    checks = by_name(run("--json")).values()
    assert {check["state"] for check in checks} <= {"ok", "–", "missing"}
    assert all(bool(check["fix"]) == (check["state"] != "ok") for check in checks)


def test_every_declared_package_but_those_of_development_is_checked() -> None:
    checks = by_name(run("--json"))
    declared = map(Requirement, importlib.metadata.requires("gms-lmm") or [])
    needed = {line.name for line in declared if "dev" not in str(line.marker)}
    assert needed <= checks.keys()
    assert not {"pytest", "ruff", "mypy"} & checks.keys()


@pytest.mark.parametrize(
    ("name", "version", "state", "code"),
    [
        ("kornia", None, "missing", 5),
        ("kornia", "0.7.1", "missing", 5),
        ("zarr", "4.0.0", "missing", 5),
        ("snakemake", None, "–", 0),
        ("snakemake", "8.30", "–", 0),
    ],
)
def test_package_that_is_absent_or_of_another_version(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, state: str, code: int
) -> None:
    truly = importlib.metadata.version

    def version_of(asked: str) -> str:
        if asked != name:
            return truly(asked)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", version_of)
    result = run("--json")
    assert result.exit_code == code
    check = by_name(result)[name]
    assert check["state"] == state
    assert (version or "not installed") in check["found"]
    assert "pip install" in check["fix"]
    if code:
        assert f"error: this machine is not ready: {name}" in result.stderr
        assert "fix: pip install" in result.stderr
        assert json.loads(result.stdout)["ready"] is False


def test_old_python_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    check = doctor.check_python()
    assert check.state == "missing"
    assert "3.11" in check.fix


def test_package_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    (check,) = doctor.check_packages()
    assert (check.name, check.state) == ("gms-lmm", "missing")


@pytest.mark.parametrize("bf16", [True, False])
def test_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    class Properties:
        name = "Some GPU"
        total_memory = 24_000_000_000

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    device, arithmetic = doctor.check_devices()
    assert (device.state, device.found) == ("ok", "Some GPU, 24 GB")
    assert arithmetic.state == ("ok" if bf16 else "–")


def test_cpu_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device = next(doctor.check_devices())
    assert device.state == "–"
    assert device.found.startswith("CPU alone")


@pytest.mark.parametrize(
    ("text", "state", "found"),
    [
        ("MemTotal: 9 kB\nMemAvailable:   8000000 kB\n", "ok", "8.2 GB free"),
        ("MemTotal: 9 kB\nMemAvailable:   500000 kB\n", "–", "0.5 GB free"),
        ("MemTotal: 9 kB\n", "–", "does not say"),
        (None, "–", "does not say"),
    ],
)
def test_memory_is_what_a_new_process_can_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, state: str, found: str
) -> None:
    if text:
        (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "meminfo")
    check = doctor.check_memory()
    assert check.state == state
    assert found in check.found


@pytest.mark.parametrize(("free", "state"), [(50e9, "ok"), (0.3e9, "–")])
def test_disk_is_that_of_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, free: float, state: str
) -> None:
    class Usage:
        def __init__(self, path: Any) -> None:
            assert path == "."
            self.free = free

    monkeypatch.setattr(doctor.shutil, "disk_usage", Usage)
    assert doctor.check_disk().state == state


@pytest.mark.parametrize(
    ("packaged", "cached", "online", "states"),
    [
        (True, False, False, ["ok", "–", "–", "–"]),
        (True, True, False, ["ok", "–", "ok", "–"]),
        (False, True, False, ["–", "–", "ok", "–"]),
        (False, False, True, ["–", "–", "–", "–"]),
        (False, False, False, ["missing", "–", "–", "–"]),
    ],
)
def test_tokenizers_are_missing_only_when_none_can_be_had(
    monkeypatch: pytest.MonkeyPatch, packaged: bool, cached: bool, online: bool, states: list[str]
) -> None:
    monkeypatch.setattr("pipeline.weights.packaged", lambda: packaged)
    monkeypatch.setattr("pipeline.weights.hub_reachable", lambda: online)
    monkeypatch.setattr(
        "pipeline.weights.in_cache",
        lambda hub_id: Path("/cache/taesd") if cached and hub_id == "madebyollin/taesd" else None,
    )
    checks = list(doctor.check_tokenizers())
    assert [check.name for check in checks] == ["tiny-vae", "sd-vae", "taesd", "taesd3"]
    assert [check.state for check in checks] == states
    words = "downloaded when first used" if online else "hf download stabilityai/sd-vae-ft-mse"
    assert words in checks[1].fix


def test_people_get_a_line_a_check() -> None:
    result = run()
    checks = by_name(run("--json"))
    lines = result.stdout.splitlines()
    assert len(lines) == len(checks)
    for line, check in zip(lines, checks.values(), strict=True):
        assert line.split()[:2] == [check["state"], check["name"]]
        assert line.endswith(check["fix"])
