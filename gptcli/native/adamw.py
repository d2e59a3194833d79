"""The step of AdamW, and the norm of gradients, on a CPU by compiled code (native/adamw.cpp)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from ctypes import c_double, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from gptcli.native.kernels import load_kernels


class _Weights(ctypes.Structure):
    _fields_ = (
        ("weights", c_void_p),
        ("mean", c_void_p),
        ("square_mean", c_void_p),
        ("gradients", c_void_p),
        ("count", c_int64),
        ("kept", c_float),
        ("rate", c_float),
        ("square_correction", c_float),
    )


class _Step(ctypes.Structure):
    _fields_ = tuple((name, c_float) for name in ("gradient_scale", "beta1", "beta2", "epsilon"))


class NativeAdamW(torch.optim.AdamW):
    """torch's AdamW, for float32 on a CPU, whose gradients are multiplied by `gradient_scale` first."""

    gradient_scale = 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        assert closure is None
        kernels = load_kernels("adamw")
        assert kernels is not None
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not learning:
                continue
            beta1, beta2 = group["betas"]
            states = [self._state_of(parameter) for parameter in learning]
            torch._foreach_add_([state["step"] for state in states], 1)
            weights = []
            for parameter, state in zip(learning, states, strict=True):
                gradient = parameter.grad = parameter.grad.contiguous()
                parts = (parameter, state["exp_avg"], state["exp_avg_sq"], gradient)
                assert all(part.dtype == torch.float32 and part.is_contiguous() for part in parts)
                steps = state["step"].item()
                weights.append(
                    _Weights(
                        *(part.data_ptr() for part in parts),
                        parameter.numel(),
                        1 - group["lr"] * group["weight_decay"],
                        group["lr"] / (1 - beta1**steps),
                        math.sqrt(1 - beta2**steps),
                    )
                )
            kernels.gptcli_adamw(
                (_Weights * len(weights))(*weights),
                c_int64(len(weights)),
                ctypes.byref(_Step(self.gradient_scale, beta1, beta2, group["eps"])),
                torch.get_num_threads(),
            )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
        return state


def gradient_norm(gradients: Iterable[Tensor]) -> float:
    """Return the L2 norm of all their numbers together. They are in float32, on a CPU."""
    kernels = load_kernels("adamw")
    assert kernels is not None
    gradients = [gradient.contiguous() for gradient in gradients]
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    parts = [_Weights(gradients=gradient.data_ptr(), count=gradient.numel()) for gradient in gradients]
    function = kernels.gptcli_gradient_norm
    function.restype = c_double
    norm: float = function((_Weights * len(parts))(*parts), c_int64(len(parts)), torch.get_num_threads())
    return norm


def has_adamw() -> bool:
    """Return whether compiled code is there."""
    return load_kernels("adamw") is not None
