"""Whether a training is compiled by torch.compile, and how.

Each layer is compiled, not the whole model: all layers share the one result, which takes seconds and not
minutes to make. torch keeps it in a folder for the next run.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from gptcli.config.schema import Settings
from gptcli.errors import EnvironmentProblem
from gptcli.training.device import Compute

# Floating-point operations of a run from which compiling pays back: it takes about half a minute, and
# makes a step on a CPU up to a fifth shorter, the more the smaller the model (benchmarks/RESULTS.md): of
# 4 layers 128 wide, twelve minutes.
WORTH_COMPILING = {"cpu": 2e14, "cuda": 1e16}


def choose_compilation(
    settings: Settings, compute: Compute, parameters: int, tokens: int, *, is_native: bool = False
) -> tuple[bool, str]:
    """Return whether to compile, and why.

    tokens: that the run is going to train on. is_native: compiled code (gptcli/native) is there for the
    layers. Raises EnvironmentProblem if it is wanted and cannot be.
    """
    wanted = settings.runtime.compile
    missing = _what_is_missing(compute)
    if wanted is not None:
        if wanted and missing:
            raise EnvironmentProblem(
                f"runtime.compile is true, but {missing}. Leave it out, or set false."
            )
        return wanted, "as set"
    if is_native:
        return False, "the layers have compiled code of their own"
    if missing:
        return False, missing
    if settings.task != "language-modelling":
        return False, "sequences differ in length"
    if settings.training.lora is not None or settings.training.gradient_checkpointing:
        return False, "not with lora or gradient_checkpointing"
    if compute.precision == "fp32":
        return False, "in fp32 it gains next to nothing"
    # 6 a weight and token: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361.
    operations = 6.0 * parameters * tokens
    least = WORTH_COMPILING[compute.device.type]
    if operations < least:
        return False, f"{operations:.0e} operations are done before it has paid back"
    return True, f"{operations:.0e} operations are worth it"


def compile_layers(model: Any) -> None:
    """Let the layers of a GPT-2 be compiled when they are first used."""
    # What is cheap to make again and goes into a matrix product, the outputs of layer norms and of the
    # activation function, would be kept all the same: a third of all that layers keep.
    torch._functorch.config.ban_recompute_materialized_backward = False
    for block in model.transformer.h:
        if isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "tanh":
            block.mlp.act = FusableGelu()
        block.compile(dynamic=False)


def uncompiled(is_compiled: bool) -> AbstractContextManager[Any]:
    """Let a compiled model run as it was written, where other shapes would be compiled for little."""
    return torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()


class FusableGelu(nn.Module):
    """`gelu_pytorch_tanh` by an exponential, for which compilers have faster code than for tanh."""

    def forward(self, inputs: Tensor) -> Tensor:
        # (1 + tanh(y)) / 2 = sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3); in float32, as torch's.
        x = inputs.float()
        return (x * torch.sigmoid(x * (1.5957691216057308 + 0.07135481627260025 * x * x))).to(
            inputs.dtype
        )


def _what_is_missing(compute: Compute) -> str | None:
    if compute.device.type not in WORTH_COMPILING:
        return f"it is not tried on {compute.device.type}"
    if compute.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler (g++ or clang++)"
    if compute.device.type == "cuda" and not any(map(shutil.which, ("gcc", "clang", "cc"))):
        return "there is no C compiler (gcc or clang), which triton needs"
    return None
