"""The matrix products of a GPT-2's layers in bfloat16 on a CPU, by compiled code where it is faster.

Weights and their gradients stay in float32: no copy of either in bfloat16 is made, and gradients are not
rounded to it. What the activation function makes is made where it is multiplied, and never kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from gptcli.native import product as native_product


class NativeConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, with weights (inputs, outputs); the function stays the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outputs) of (..., inputs)."""
        if not is_in_bfloat16(x, self.parameters()):
            return cast(Tensor, super().forward(x))
        outputs: Tensor = _linear(_rows(x), self.weight, self.bias)
        return outputs.view(*x.shape[:-1], self.nf)


class NativeMLP(GPT2MLP):  # type: ignore[misc]
    """Two linear layers with GELU by tanh between them; the function stays the same."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (..., width) of the same."""
        if not is_in_bfloat16(hidden_states, self.parameters()):
            return cast(Tensor, super().forward(hidden_states))
        first, second = self.c_fc, self.c_proj
        outputs: Tensor = _mlp(
            _rows(hidden_states), first.weight, first.bias, second.weight, second.bias
        )[0]
        return cast(Tensor, self.dropout(outputs.view(*hidden_states.shape[:-1], second.nf)))


def use_native_products(model: Any) -> None:
    """Let the layers of a GPT-2 multiply by compiled code, where that is faster on this machine."""
    # Those that adapters were put around are left as they are, but for what is inside.
    for module in model.modules():
        if type(module) is Conv1D and native_product.is_faster(module.weight.numel()):
            module.__class__ = NativeConv1D
    for module in model.modules():
        if (
            type(module) is GPT2MLP
            and is_tanh_gelu(module.act)
            and type(module.c_fc) is type(module.c_proj) is NativeConv1D
        ):
            module.__class__ = NativeMLP


def is_tanh_gelu(module: nn.Module) -> bool:
    """Return whether it is the activation function of compiled code."""
    return isinstance(module, nn.GELU) and module.approximate == "tanh"


def is_in_bfloat16(inputs: Tensor, weights: Iterable[Tensor]) -> bool:
    """Return whether this is on a CPU, in bfloat16 by autocast, and with weights in float32."""
    return (
        inputs.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and all(weight.dtype == torch.float32 for weight in weights)
    )


def _rows(inputs: Tensor) -> Tensor:
    return inputs.to(torch.bfloat16).reshape(-1, inputs.shape[-1])


# Operators of their own, so that a compiler does not look into them. All but weights, biases and their
# gradients is in bfloat16.
@torch.library.custom_op("gptcli::linear", mutates_args=())
def _linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return (n, outputs) of (n, inputs)."""
    outputs = inputs.new_empty(len(inputs), weight.shape[1])
    native_product.multiply(inputs, weight, outputs, bias=bias)
    return outputs


@torch.library.custom_op("gptcli::mlp", mutates_args=())
def _mlp(
    inputs: Tensor, weight: Tensor, bias: Tensor, second_weight: Tensor, second_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (n, outputs) of (n, inputs), and (n, inner), what the activation function was given."""
    given = inputs.new_empty(len(inputs), weight.shape[1])
    native_product.multiply(inputs, weight, given, bias=bias)
    outputs = inputs.new_empty(len(inputs), second_weight.shape[1])
    native_product.multiply(given, second_weight, outputs, bias=second_bias, is_left_activated=True)
    return outputs, given


@torch.library.custom_op("gptcli::linear_of_inputs", mutates_args=())
def _gradient_of_inputs(gradient: Tensor, weight: Tensor, given: Tensor | None = None) -> Tensor:
    """Return (n, inputs) of (n, outputs), or where inputs are activated, that of what is `given`."""
    of_inputs = gradient.new_empty(len(gradient), len(weight))
    native_product.multiply(gradient, weight.T, of_inputs, slopes_at=given)
    return of_inputs


@torch.library.custom_op("gptcli::linear_of_weight", mutates_args=())
def _gradient_of_weight(
    gradient: Tensor, inputs: Tensor, are_activated: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias; gradient: (n, outputs)."""
    of_weight, of_bias = _new_gradients(gradient, inputs, are_activated)
    native_product.multiply(
        inputs.T, gradient, of_weight, right_totals=of_bias, is_left_activated=are_activated
    )
    return of_weight, of_bias


def _new_gradients(
    gradient: Tensor, inputs: Tensor, are_activated: bool = False
) -> tuple[Tensor, Tensor]:
    outputs = gradient.shape[1]
    of_weight = gradient.new_empty(inputs.shape[1], outputs, dtype=torch.float32)
    return of_weight, gradient.new_empty(outputs, dtype=torch.float32)


@_linear.register_fake
def _(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return inputs.new_empty(len(inputs), weight.shape[1])


@_mlp.register_fake
def _(
    inputs: Tensor, weight: Tensor, bias: Tensor, second_weight: Tensor, second_bias: Tensor
) -> tuple[Tensor, Tensor]:
    n = len(inputs)
    return inputs.new_empty(n, second_weight.shape[1]), inputs.new_empty(n, weight.shape[1])


@_gradient_of_inputs.register_fake
def _(gradient: Tensor, weight: Tensor, given: Tensor | None = None) -> Tensor:
    return gradient.new_empty(len(gradient), len(weight))


_gradient_of_weight.register_fake(_new_gradients)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inputs, weight = ctx.saved_tensors
    wants_inputs, *wants = ctx.needs_input_grad
    of_inputs = _gradient_of_inputs(gradient, weight) if wants_inputs else None
    of_weight = _gradient_of_weight(gradient, inputs) if any(wants) else (None, None)
    return of_inputs, *of_weight


def _save_mlp_for_backward(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]
) -> None:
    rows, weight, _, second_weight, _ = inputs
    ctx.save_for_backward(rows, output[1], weight, second_weight)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # No zeros for what nobody asks for a gradient.


def _mlp_backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    inputs, given, weight, second_weight = ctx.saved_tensors
    wants_inputs, *wants = ctx.needs_input_grad
    of_second = _gradient_of_weight(gradient, given, True) if any(wants[2:]) else (None, None)
    of_given = _gradient_of_inputs(gradient, second_weight, given)
    of_first = _gradient_of_weight(of_given, inputs) if any(wants[:2]) else (None, None)
    of_inputs = _gradient_of_inputs(of_given, weight) if wants_inputs else None
    return of_inputs, *of_first, *of_second


_linear.register_autograd(_backward, setup_context=_save_for_backward)
_mlp.register_autograd(_mlp_backward, setup_context=_save_mlp_for_backward)
