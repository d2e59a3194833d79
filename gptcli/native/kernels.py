"""What is written in C++ here, compiled for this machine's processor when it is first used, and kept.

A compiler for C++ with OpenMP is needed (`g++`, `clang++`, or what CXX names), as for torch.compile;
without one, or where it fails, torch's own operators do the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

_FOLDER = Path(__file__).parent
COMPILERS = ("g++", "c++", "clang++")
# Errors and traps of mathematics are not looked at; without, loops with rounding are not vectorized.
_FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_MAX_SECONDS = 120
# What of /proc/cpuinfo says which instructions there are: a home folder may serve several machines.
_PROCESSOR = ("model name", "flags", "Features", "CPU implementer", "CPU variant", "CPU part")


class NoKernelError(Exception):
    """The kernel cannot be had on this machine; says why."""


@functools.cache
def load_kernels(name: str) -> ctypes.CDLL | None:
    """Return the compiled functions of NAME.cpp, or None where they cannot be had."""
    try:
        return build_kernels(name)
    except NoKernelError:
        return None


def build_kernels(name: str) -> ctypes.CDLL:
    """Return the compiled functions of NAME.cpp, of an earlier compilation if there is one.

    Raises NoKernelError where that is impossible.
    """
    if platform.system() != "Linux":
        raise NoKernelError(f"it is for Linux, and this is {platform.system()}")
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    flags = (*_FLAGS, *(("-march=native", "-mprefer-vector-width=512") if is_x86 else ("-mcpu=native",)))
    source = _FOLDER / f"{name}.cpp"
    content = b"".join(file.read_bytes() for file in (source, *sorted(_FOLDER.glob("*.h"))))
    digest = hashlib.sha256(content + "\n".join((*flags, *_processor())).encode()).hexdigest()
    file = kernel_folder() / f"{name}-{digest[:32]}.so"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_nobody_else_writes(file.parent)
        with suppress(OSError):  # Not there, or damaged.
            return ctypes.CDLL(str(file))
        _compile(source, flags, file)
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NoKernelError(str(error)) from error


def check_memory(was_enough: bool) -> None:
    """Raise torch's OutOfMemoryError unless it was, which is what compiled code returns."""
    if not was_enough:
        import torch

        raise torch.OutOfMemoryError("there is too little memory for compiled code")


def kernel_folder() -> Path:
    """Return where compiled code is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gptcli" / "native"


def _check_nobody_else_writes(folder: Path) -> None:
    # What lies in it is run.
    facts = folder.stat()
    if facts.st_uid != os.geteuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NoKernelError(f"others may write to {folder}: chmod 700 it, or remove it")


def find_compiler() -> str | None:
    """Return the path of the compiler that is taken."""
    names = [name for name in (os.environ.get("CXX"), *COMPILERS) if name]
    return next((found for found in map(shutil.which, names) if found), None)


def _compile(source: Path, flags: tuple[str, ...], file: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise NoKernelError("there is no compiler for C++: install g++")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        staged = Path(folder) / file.name
        try:
            done = subprocess.run(  # noqa: S603
                [compiler, *flags, "-o", staged, source],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_MAX_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NoKernelError(f"{compiler} took more than {_MAX_SECONDS} seconds") from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").splitlines() or ["it does not say why"]
            why = next((line for line in lines if "error" in line), lines[0])
            raise NoKernelError(f"{compiler} cannot compile it: {why.strip()}")
        # Whole, or not there: others may be looking for it.
        staged.replace(file)


def _processor() -> list[str]:
    with suppress(OSError):
        one = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        return [line for line in one.splitlines() if line.split("\t")[0].strip() in _PROCESSOR]
    return [platform.processor()]
