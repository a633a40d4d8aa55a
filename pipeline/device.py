"""Which device and arithmetic a command uses when it is left to choose."""

from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.errors import UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is the first of CUDA, Apple's MPS and CPU that is there; any torch device name works.

    raises  UsageError when the device asked for is not there
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used: {reason}", "--device auto") from error


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware computes in it, else fp32.

    On a CPU that is AVX-512 BF16 or AMX: one LMM step then takes about half the time.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def require_compiler(device: torch.device) -> None:
    """Raise UsageError when torch cannot generate kernels for the device on this machine.

    A C++ compiler and Python's headers are what it takes; on CUDA Triton, which its wheel brings.
    """
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"torch cannot compile for {device.type} here: {reason}",
            "install a C++ compiler and Python's headers, or leave --compile out",
        ) from error


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Half-precision arithmetic over float32 weights, or nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on whatever device."""
    # A CPU allocation that fails is a plain RuntimeError with these words.
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
