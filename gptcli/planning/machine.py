"""What this machine has, as far as it can be seen without torch."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptcli.config.schema import RuntimeSettings
from gptcli.native.kernels import find_compiler
from gptcli.planning.memory import Device, Precision


@dataclass(frozen=True)
class Machine:
    """The device and precision that a training would take here, and the memory that there is."""

    device: Device
    precision: Precision
    is_native: bool
    """Whether compiled code makes the products with large matrices (native/product.py)."""
    memory_bytes: int | None
    """None where it is not told, as that of a GPU."""


def this_machine(runtime: RuntimeSettings) -> Machine:
    """Return what `runtime` leads to here; what is auto is decided as `training.device` does.

    A GPU counts as one with bf16; whether it is free, or works, only the training sees.
    """
    kind = runtime.device.partition(":")[0]
    device: Device = "cpu"
    if kind == "cuda" or (kind == "auto" and any(Path("/proc/driver/nvidia/gpus").glob("*"))):
        device = "cuda"
    elif kind == "mps" or (kind == "auto" and (sys.platform, platform.machine()) == ("darwin", "arm64")):
        device = "mps"
    precision: Precision = "fp32"
    if runtime.training_precision != "auto":
        precision = runtime.training_precision
    elif device == "cuda" or (device == "cpu" and _cpu_multiplies_bf16()):
        precision = "bf16"
    is_native = (device, precision) == ("cpu", "bf16") and _cpu_has("amx_bf16") and bool(find_compiler())
    return Machine(device, precision, is_native, None if device == "cuda" else memory_bytes())


def _cpu_multiplies_bf16() -> bool:
    return _cpu_has("avx512_bf16", "amx_bf16")


def _cpu_has(*instructions: str) -> bool:
    """Return whether the processor has one of these."""
    with suppress(OSError):
        return not set(instructions).isdisjoint(Path("/proc/cpuinfo").read_text().split())
    return False


def memory_bytes() -> int | None:
    """Return the machine's memory, or what a container leaves of it; None if the system does not say."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    with suppress(OSError, ValueError):  # No container, or one without a limit ("max").
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory
