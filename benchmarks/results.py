"""benchmarks/RESULTS.md: a section a benchmark, written by the programs, and the machine at the top.

`write_section` replaces the section of that title, or adds it at the end. Each says when and on which
machine it was measured; the description at the top is that of the machine that wrote last.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"
HEAD = """# Results

Written by the programs of this folder. Each section says when it was measured and on what; the machine
below is the one that wrote last."""
MACHINE = "Machine"
# The instruction sets that matrix products are made of.
INSTRUCTION_SETS = (
    *("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("neon", "bf16", "i8mm", "sve", "sme"),
)
# Edges of the square matrices that are tried; the fastest counts.
EDGES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
REPETITIONS = 10


def write_section(title: str, lines: list[str], *, device: str = "cpu", file: Path = RESULTS) -> None:
    """Replace or append the section `## title`, dated, and renew the machine's description.

    lines: Markdown, without the heading. device: what was measured on.
    """
    sections = read_sections(file)
    sections[MACHINE] = describe_machine(device)
    measured = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine_name(device)}."
    sections[title] = [measured, "", *lines]
    # The machine comes first, the others as they came.
    ordered = [MACHINE, *(name for name in sections if name != MACHINE)]
    parts = [HEAD, *(f"## {name}\n\n" + "\n".join(sections[name]) for name in ordered)]
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def read_sections(file: Path) -> dict[str, list[str]]:
    """Return the lines of each section by its title; none if there is no file."""
    if not file.exists():
        return {}
    _, *parts = re.split(r"^## (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip().splitlines() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def describe_machine(device: str) -> list[str]:
    """Return what results depend on, as a table; nothing that names the machine or its owner."""
    rates = [(torch.bfloat16, "bfloat16"), (torch.float32, "float32")]
    capabilities = torch.cpu.get_capabilities()
    facts = {
        "processor": f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "instruction sets": ", ".join(name for name in INSTRUCTION_SETS if capabilities.get(name)),
        "memory": f"{_memory_bytes() / 2**30:.0f} GiB",
        "GPU": _gpu() or "none",
        "system": f"{_system()}, {platform.machine()}",
        "versions": ", ".join(
            (
                f"Python {platform.python_version()}",
                *(f"{name} {version(name)}" for name in ("torch", "transformers")),
            )
        ),
        **{
            f"{name} matrix products, {device}": f"{matrix_rate(dtype, device) / 1e9:,.0f} GFLOP/s"
            for dtype, name in rates
        },
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]


def machine_name(device: str) -> str:
    """Return the machine in a line: what computes, and with which torch."""
    computes = f"{_processor()}, {os.cpu_count()} cores" if device == "cpu" else _gpu()
    return f"{computes}, torch {version('torch')}"


def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Return the operations a second of a product of matrices, which nothing can be faster than.

    The best of several sizes and repetitions; a multiplication and an addition are two operations.
    """
    rates = []
    for edge in EDGES["cpu" if device == "cpu" else "cuda"]:
        matrix = torch.randn(edge, edge, device=device).to(dtype)
        for _ in range(REPETITIONS):
            _wait_for(device)
            started = time.perf_counter()
            matrix @ matrix
            _wait_for(device)
            rates.append(2.0 * edge**3 / (time.perf_counter() - started))
    return max(rates)


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu() -> str | None:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"
