from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch

from gptcli.config.schema import RuntimeSettings
from gptcli.errors import ConfigError, EnvironmentProblem, ExitCode
from gptcli.training.device import choose_compute, multiplies_int8
from tests.conftest import REPOSITORY

HAS_CUDA = torch.cuda.is_available()
HAS_MPS = torch.backends.mps.is_available()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA GPU")
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(HAS_CUDA or HAS_MPS, reason="there is a GPU")
def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_why() -> None:
    compute = choose_compute(RuntimeSettings(threads=1, precision="fp32"), for_training=False)
    assert compute.device.type == "cpu"
    assert compute.describe() == "cpu (no GPU found; 1 threads), fp32 (as set)"


@pytest.mark.parametrize(
    ("device", "precision", "part"),
    [
        pytest.param("cuda", "auto", "runtime.device is cuda, but", marks=without_cuda),
        pytest.param("cuda:1", "auto", "runtime.device is cuda:1, but", marks=without_cuda),
        pytest.param(
            "mps",
            "auto",
            "there is no Apple GPU",
            marks=pytest.mark.skipif(HAS_MPS, reason="there is an Apple GPU"),
        ),
        ("cpu", "fp16", "runtime.precision is fp16, which needs a GPU"),
    ],
)
def test_a_device_or_precision_that_cannot_be_is_refused_with_what_to_use_instead(
    device: str, precision: Precision, part: str
) -> None:
    settings = RuntimeSettings(device=device, precision=precision)
    with pytest.raises(EnvironmentProblem, match=r"Use auto or (cpu|bf16)") as caught:
        choose_compute(settings, for_training=True)
    assert part in str(caught.value)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5


@pytest.mark.parametrize("for_training", [False, True])
def test_auto_is_bf16_on_a_cpu_that_multiplies_it_in_hardware(for_training: bool) -> None:
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        pytest.skip("there is no /proc/cpuinfo to compare with")
    flags = facts.read_text().split()
    expected = "bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "fp32"
    compute = choose_compute(RuntimeSettings(device="cpu"), for_training=for_training)
    assert compute.precision == expected


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_matrix_products_run_in_the_chosen_precision_and_weights_stay_float32(
    precision: Precision, dtype: torch.dtype
) -> None:
    compute = choose_compute(RuntimeSettings(device="cpu", precision=precision), for_training=True)
    layer = torch.nn.Linear(4, 4)
    with compute.autocast():
        product = layer(torch.ones(1, 4))
    assert product.dtype == compute.dtype == dtype
    product.sum().backward()
    assert layer.weight.dtype == torch.float32
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_int8_is_for_models_that_are_used_and_refused_for_training() -> None:
    settings = RuntimeSettings(device="cpu", precision="int8")
    with pytest.raises(ConfigError, match=r"int8, which is for using a model, not for training one"):
        choose_compute(settings, for_training=True)
    if not multiplies_int8():
        with pytest.raises(EnvironmentProblem, match="which this torch cannot do"):
            choose_compute(settings, for_training=False)
        return
    compute = choose_compute(settings, for_training=False)
    assert (compute.precision, compute.is_int8, compute.dtype) == ("int8", True, torch.float32)


def test_threads_are_set_as_asked() -> None:
    choose_compute(RuntimeSettings(device="cpu", threads=1), for_training=True)
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_system(tmp_path: Path) -> None:
    program = """
import resource, torch
from gptcli.training.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()  # Until there is room enough.
print(faults())
"""
    shown = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    # A single one would be 16,384 pages of 4 KiB, or 32 of 2 MiB.
    assert int(shown.stdout) < 32
