"""Which device and number format to run on, and why."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from gptcli.config.schema import RuntimeSettings
from gptcli.errors import EnvironmentProblem
from gptcli.native.processor import cpu_capabilities
from gptcli.planning.machine import memory_bytes

# Of malloc.h: no mapping of its own for a large block, nothing given back, 64 MiB more at a time, and
# one pool for all threads, so that the backward pass finds what the forward pass has freed.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_MALLOC_SETTINGS = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 2**26, _M_ARENA_MAX: 1}

_LARGE_PAGE, _MADV_HUGEPAGE = 2**21, 14  # Of Linux's madvise.

# int8 is for products alone.
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,
}


@dataclass(frozen=True)
class Compute:
    """A device, a precision ("fp32", "bf16", "fp16", "int8"), and the reason for each."""

    device: torch.device
    precision: str
    device_reason: str
    precision_reason: str

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def is_int8(self) -> bool:
        """Whether products are with weights as bytes."""
        return self.precision == "int8"

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in the chosen precision; weights and their updates stay in float32."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def describe(self) -> str:
        return f"{self.device} ({self.device_reason}), {self.precision} ({self.precision_reason})"


def choose_compute(settings: RuntimeSettings, *, for_training: bool) -> Compute:
    """Return what `settings` ask for, "auto" resolved, and set the number of CPU threads.

    Raises EnvironmentProblem for a device that is not there or a precision that it cannot do.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device, device_reason = _choose_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    name = settings.training_precision if for_training else settings.precision
    precision, precision_reason = _choose_precision(name, device, for_training)
    return Compute(device, precision, device_reason, precision_reason)


def keep_freed_memory() -> None:
    """Let this process keep the memory of tensors that are freed, for the next ones, in large pages.

    glibc gives memory of large tensors back to the system, which hands it out again page by page, each
    filled with zeros first: a quarter of a training step's time. What is freed stays with the process
    until it ends; other C libraries keep their ways. In pages of 4 KiB, looking up where each one is
    takes longer than reading it: where Linux has pages of 2 MiB for who asks, reading all weights once,
    as each new token does, takes a third less time.
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, malloc, free = library.mallopt, library.malloc, library.free
        madvise = library.madvise
    except (OSError, AttributeError):  # No glibc.
        return
    for parameter, value in _MALLOC_SETTINGS.items():
        mallopt(parameter, value)
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.argtypes = [ctypes.c_void_p]
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    memory = memory_bytes()
    if memory is None or _promises_all():  # Addresses kept for later would be missing elsewhere.
        return
    # Addresses alone: memory is taken where something is written. They stay with the process.
    size = memory // 2
    address = malloc(size)
    if address is None:  # More than one process may have.
        return
    first = -(-address // _LARGE_PAGE) * _LARGE_PAGE
    madvise(first, (address + size - first) // _LARGE_PAGE * _LARGE_PAGE, _MADV_HUGEPAGE)
    free(address)


def multiplies_int8() -> bool:
    """Return whether this torch, on this processor, has exact products of bytes."""
    # Without VNNI, sums of two products are cut off at 16 bits.
    capabilities = cpu_capabilities()
    return (
        bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
        and torch.backends.quantized.engine in ("x86", "fbgemm")
        and hasattr(torch.ops.onednn, "qlinear_prepack")
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    )


def _promises_all() -> bool:
    """Whether Linux counts addresses as memory, though nothing is written there."""
    with suppress(OSError):
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    return False


def _choose_device(name: str) -> tuple[torch.device, str]:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0), f"found {torch.cuda.get_device_name(0)}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "found an Apple GPU"
        return torch.device("cpu"), f"no GPU found; {torch.get_num_threads()} threads"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            why = "no CUDA GPU is visible" if torch.version.cuda else "this torch is built without CUDA"
            raise EnvironmentProblem(f"runtime.device is {name}, but {why}. Use auto or cpu.")
        index = int(name.partition(":")[2] or 0)
        count = torch.cuda.device_count()
        if index >= count:
            raise EnvironmentProblem(
                f"runtime.device is {name}, but there are {count} CUDA GPUs, numbered from 0."
            )
        return torch.device("cuda", index), "as set"
    if name == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem("runtime.device is mps, but there is no Apple GPU. Use auto or cpu.")
    return torch.device(name), "as set"


def _choose_precision(name: str, device: torch.device, for_training: bool) -> tuple[str, str]:
    if name == "auto":
        if device.type == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return "bf16", "the GPU multiplies it in hardware"
            return "fp16", "the GPU has no bf16"
        if device.type == "cpu" and _cpu_multiplies_bf16():
            return "bf16", "the CPU multiplies it in hardware"
        return "fp32", f"no faster format is known to be safe on this {device.type}"
    if name == "fp16" and device.type == "cpu":
        raise EnvironmentProblem("runtime.precision is fp16, which needs a GPU. Use auto or bf16.")
    if name == "fp16" and device.type == "mps" and for_training:
        raise EnvironmentProblem(
            "runtime.precision is fp16, which gptcli trains with on CUDA only. Use fp32 or bf16."
        )
    if name == "int8" and device.type != "cpu":
        raise EnvironmentProblem(
            f"runtime.precision is int8, which is for CPUs; the device is {device}. Use auto or bf16."
        )
    if name == "int8" and not multiplies_int8():
        raise EnvironmentProblem(
            "runtime.precision is int8, which this torch cannot do on this processor. Use auto or bf16."
        )
    if (
        name == "bf16"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise EnvironmentProblem("runtime.precision is bf16, which this GPU lacks. Use fp16 or fp32.")
    return name, "as set"


def _cpu_multiplies_bf16() -> bool:
    capabilities = cpu_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
