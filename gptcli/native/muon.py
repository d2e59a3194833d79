"""The step of Muon on a CPU by compiled code (native/muon.cpp)."""

from __future__ import annotations

import ctypes
import math
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch

from gptcli.native.kernels import check_memory, load_kernels
from gptcli.native.processor import multiplies_tiles


class _Weights(ctypes.Structure):
    _fields_ = (
        ("weights", c_void_p),
        ("momentum", c_void_p),
        ("gradients", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("scale", c_float),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("gradient_scale", c_float),
        ("kept", c_float),
        ("momentum", c_float),
        ("epsilon", c_float),
        ("coefficients", c_float * 3),
        ("iterations", c_int64),
    )


class NativeMuon(torch.optim.Muon):
    """torch's Muon, for float32 on a CPU, with adjust_lr_fn="match_rms_adamw" (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982).

    Each thread has matrices of its own, of symmetric products one half is computed, and the last one
    goes to the weights without being rounded to bfloat16. Gradients are multiplied by `gradient_scale`
    first.
    """

    gradient_scale = 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        assert closure is None
        kernels = load_kernels("muon")
        assert kernels is not None
        for group in self.param_groups:
            rate = group["lr"]
            weights = []
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                gradient = parameter.grad = gradient.contiguous()
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                parts = (parameter, state["momentum_buffer"], gradient)
                assert all(part.dtype == torch.float32 and part.is_contiguous() for part in parts)
                scale = -0.2 * rate * math.sqrt(max(parameter.shape))
                weights.append(_Weights(*(part.data_ptr() for part in parts), *parameter.shape, scale))
            step = _Step(
                self.gradient_scale,
                1 - rate * group["weight_decay"],
                group["momentum"],
                group["eps"],
                (c_float * 3)(*group["ns_coefficients"]),
                group["ns_steps"],
            )
            check_memory(
                kernels.gptcli_muon(
                    (_Weights * len(weights))(*weights),
                    c_int64(len(weights)),
                    ctypes.byref(step),
                    torch.get_num_threads(),
                )
            )


def has_muon() -> bool:
    """Return whether compiled code is there, and faster on this processor."""
    return multiplies_tiles() and load_kernels("muon") is not None
