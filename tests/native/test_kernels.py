"""Compiled code is kept, made anew where it is damaged, and done without where it cannot be made."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptcli.native import kernels
from gptcli.native.kernels import COMPILERS, NoKernelError, build_kernels

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="compiled code is for Linux")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="there is no compiler for C++"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "gptcli" / "native"


@needs_compiler
def test_what_was_compiled_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_kernels("forward").gptcli_forward
    (file,) = cache.iterdir()
    monkeypatch.setenv("PATH", "")  # No compiler any more.
    assert build_kernels("forward").gptcli_multiply
    assert list(cache.iterdir()) == [file]


@needs_compiler
def test_a_damaged_file_is_compiled_anew(cache: Path) -> None:
    # Elsewhere: a process looks only once at what lies in a file.
    program = 'from gptcli.native.kernels import build_kernels; build_kernels("forward")'
    subprocess.run([sys.executable, "-c", program], check=True)
    (file,) = cache.iterdir()
    file.write_bytes(b"no library")
    assert build_kernels("forward").gptcli_forward
    assert file.read_bytes().startswith(b"\x7fELF")


@needs_compiler
def test_another_processor_gets_a_file_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_kernels("forward")
    monkeypatch.setattr(kernels, "_processor", lambda: ["flags : fewer"])
    build_kernels("forward")
    assert len(list(cache.iterdir())) == 2


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoKernelError, match=r"no compiler for C\+\+: install g\+\+"):
        build_kernels("forward")


def program(file: Path, commands: str) -> str:
    """Write a program of the shell, and return its path."""
    file.write_text(f"#!/bin/sh\n{commands}\n")
    file.chmod(0o755)
    return str(file)


def test_a_compiler_that_fails_is_named_with_what_it_says(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = "echo unknown option -march=native >&2\nexit 1"
    monkeypatch.setenv("CXX", program(tmp_path / "old-compiler", commands))
    with pytest.raises(NoKernelError, match="old-compiler cannot compile it: unknown option -march"):
        build_kernels("forward")
    assert list(cache.iterdir()) == []


def test_a_compiler_that_does_not_end_is_named(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", program(tmp_path / "stuck-compiler", "exec sleep 3600"))
    monkeypatch.setattr(kernels, "_MAX_SECONDS", 0.1)
    with pytest.raises(NoKernelError, match=r"stuck-compiler took more than 0\.1 seconds"):
        build_kernels("forward")
    assert list(cache.iterdir()) == []


def test_nothing_is_run_from_a_folder_that_others_write_to(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    with pytest.raises(NoKernelError, match=r"others may write to .*native: chmod 700 it"):
        build_kernels("forward")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(NoKernelError, match="Permission denied"):
        build_kernels("forward")
