"""The matrix products of a GPT-2's layers in bfloat16 on a CPU, by compiled code where it is faster.

Weights and their gradients stay in float32: no copy of either in bfloat16 is made, and gradients are not
rounded to it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from gptcli.native import product as native_product


class NativeConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, with weights (inputs, outputs); the function stays the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outputs) of (..., inputs)."""
        is_for_bfloat16 = (
            x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and self.weight.dtype == torch.float32
        )
        if not is_for_bfloat16:
            return cast(Tensor, super().forward(x))
        rows = x.to(torch.bfloat16).flatten(0, -2)
        outputs: Tensor = _linear(rows, self.weight, self.bias)
        return outputs.view(*x.shape[:-1], self.nf)


def use_native_products(model: Any) -> None:
    """Let the layers of a GPT-2 multiply by compiled code, if that is faster on this machine."""
    if not native_product.is_faster():
        return
    for module in model.modules():
        if type(module) is Conv1D:
            module.__class__ = NativeConv1D


# Operators of their own, so that a compiler does not look into them.
@torch.library.custom_op("gptcli::linear", mutates_args=())
def _linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return (n, outputs) in bfloat16 of (n, inputs)."""
    outputs = inputs.new_empty(len(inputs), weight.shape[1])
    native_product.multiply(inputs, weight, outputs, bias=bias)
    return outputs


@torch.library.custom_op("gptcli::linear_of_inputs", mutates_args=())
def _gradient_of_inputs(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return (n, inputs) in bfloat16; gradient: (n, outputs)."""
    of_inputs = gradient.new_empty(len(gradient), len(weight))
    native_product.multiply(gradient, weight.T, of_inputs)
    return of_inputs


@torch.library.custom_op("gptcli::linear_of_weight", mutates_args=())
def _gradient_of_weight(gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias in float32; gradient: (n, outputs)."""
    of_weight, of_bias = _new_gradients(gradient, inputs)
    native_product.multiply(inputs.T, gradient, of_weight, right_totals=of_bias)
    return of_weight, of_bias


def _new_gradients(gradient: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    outputs = gradient.shape[1]
    of_weight = gradient.new_empty(inputs.shape[1], outputs, dtype=torch.float32)
    return of_weight, gradient.new_empty(outputs, dtype=torch.float32)


@_linear.register_fake
def _(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return inputs.new_empty(len(inputs), weight.shape[1])


@_gradient_of_inputs.register_fake
def _(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.new_empty(len(gradient), len(weight))


_gradient_of_weight.register_fake(_new_gradients)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inputs, weight = ctx.saved_tensors
    wants_inputs, wants_weight, wants_bias = ctx.needs_input_grad
    of_inputs = _gradient_of_inputs(gradient, weight) if wants_inputs else None
    of_weight = of_bias = None
    if wants_weight or wants_bias:
        of_weight, of_bias = _gradient_of_weight(gradient, inputs)
    return of_inputs, of_weight, of_bias


_linear.register_autograd(_backward, setup_context=_save_for_backward)
