"""GPT-2's layers in training on a CPU in bfloat16, whole by compiled code where there is some."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from gptcli.models.attention import MAX_TOKENS, use_plain_attention
from gptcli.models.embedding import use_adding_embedding
from gptcli.models.linear import (
    NativeConv1D,
    is_in_bfloat16,
    is_tanh_gelu,
    use_native_products,
)
from gptcli.native import layer as native_layer


class NativeBlock(GPT2Block):  # type: ignore[misc]
    """GPT-2's layer, in one call of compiled code each way; the function stays the same."""

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        *others: Any,
        **options: Any,
    ) -> Tensor:
        """Return (batch, tokens, width) of the same. The parameters are GPT2Block's."""
        weights = tuple(self.parameters())
        if (
            past_key_values is not None
            or attention_mask is not None
            or hidden_states.shape[1] > MAX_TOKENS
            or not hidden_states.numel()
            or not is_in_bfloat16(hidden_states, weights)
        ):
            arguments = (hidden_states, past_key_values, attention_mask, *others)
            return cast(Tensor, super().forward(*arguments, **options))
        sizes = native_layer.Sizes(self.attn.num_heads, self.ln_1.eps, self.attn.scaling)
        compute: Any = _Layer.apply
        return cast(Tensor, compute(hidden_states.float(), sizes, *weights))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, sizes: native_layer.Sizes, *weights: Tensor) -> Tensor:
        inputs = inputs.contiguous()
        outputs, kept = native_layer.forward(inputs, weights, sizes)
        ctx.save_for_backward(inputs, *kept, *weights)
        ctx.sizes, ctx.kept, ctx.parameters = sizes, len(kept), weights
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *others = ctx.saved_tensors
        kept, weights = others[: ctx.kept], others[ctx.kept :]
        # Gradients of earlier micro-batches are added to as the new ones are written; torch would go
        # over both again. As in models/embedding.py, autograd does not know of it.
        earlier = [weight.grad for weight in ctx.parameters if weight.grad is not None]
        adds = len(earlier) == len(weights) and all(ctx.needs_input_grad[2:])
        of_weights = earlier if adds else [torch.empty_like(weight) for weight in weights]
        arguments = (gradient, inputs, weights, ctx.sizes, kept, of_weights)
        of_inputs = native_layer.backward(*arguments, adds=adds)
        return of_inputs, None, *([None] * len(weights) if adds else of_weights)


def use_fast_layers(model: Any, precision: str, *, is_compiled: bool) -> None:
    """Let a GPT-2 on a CPU compute its layers as it is fastest; the function stays the same.

    is_compiled: torch.compile takes the layers, of which it can only take those that are not native.
    """
    use_plain_attention(model)
    use_adding_embedding(model)
    if precision != "bf16":
        return
    use_native_products(model)
    for block in model.transformer.h:
        if not is_compiled and _is_for(block):
            block.__class__ = NativeBlock


def has_native_layers(model: Any) -> bool:
    """Return whether compiled code on this machine can compute all layers of a GPT-2.

    It is for layers as GPT-2 has them, without dropout and adapters, with GELU by tanh, in bfloat16.
    """
    return all(map(_is_for, model.transformer.h))


def _is_for(block: Any) -> bool:
    attention, mlp = block.attn, block.mlp
    dropouts = (attention.attn_dropout, attention.resid_dropout, mlp.dropout)
    matrices = (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)
    return (
        type(block) in (GPT2Block, NativeBlock)
        and not hasattr(block, "crossattention")
        and not any(dropout.p for dropout in dropouts)
        and all(type(matrix) in (Conv1D, NativeConv1D) for matrix in matrices)
        and is_tanh_gelu(mlp.act)
        and native_layer.is_there(attention.num_heads, attention.embed_dim, mlp.c_fc.nf)
    )
