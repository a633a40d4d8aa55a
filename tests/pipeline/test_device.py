"""Which device and arithmetic a command chooses, and how it refuses one that is not there."""

import pytest
import torch

from pipeline.device import choose_device, choose_precision
from pipeline.errors import UsageError


def hardware(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_fastest_that_is_there(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    hardware(monkeypatch, cuda, mps)
    assert choose_device("auto") == torch.device(expected)


def test_cpu_can_always_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware(monkeypatch, cuda=True, mps=True)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu cpu", ""])
def test_device_that_is_not_there_is_a_usage_error_in_one_line(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(name)
    assert repr(name) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.fix == "--device auto"


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_precision_asked_for_is_precision_had(name: str) -> None:
    assert choose_precision(name, torch.device("cpu")) == name


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_f": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_it_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("in_hardware", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_gpu_does_not_count_emulation(
    monkeypatch: pytest.MonkeyPatch, in_hardware: bool, expected: str
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return in_hardware or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert choose_precision("auto", torch.device("cuda")) == expected


def test_auto_on_apples_gpu_is_full_precision() -> None:
    assert choose_precision("auto", torch.device("mps")) == "fp32"
