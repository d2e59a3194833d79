"""Causal attention on a CPU, by faster ways than torch's fused kernels.

In bfloat16, without dropout, compiled code does it where that can be had (native/attention.cpp). Else
there are plain matrix products and a softmax, for some queries at a time. torch's fused kernels for CPUs
save the memory of the attention weights, but multiply in small blocks; plain products are faster, but
for one case: in bfloat16, where the CPU has instructions for matrices (AMX), the fused forward pass
takes half of their time. Queries are taken in groups, so that most of the keys that come later than a
group are left out. The weights are made again in the backward pass and never kept, as in Dao et al. 2022
(https://arxiv.org/abs/2205.14135); of plain products, those of texts of one group take little memory,
and less time to keep than to make again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gptcli.models.attention_mask import later_keys
from gptcli.native import attention as native_attention
from gptcli.native.processor import multiplies_tiles

PLAIN_ATTENTION = "gptcli_plain_attention"
# Beyond it, the memory of the weights is no longer little.
MAX_TOKENS = 2048
# More leave out fewer of the later keys; fewer make smaller products.
QUERIES_AT_ONCE = 256


def use_plain_attention(model: Any) -> None:
    """Let a GPT-2 on a CPU attend in this way wherever no mask is given; the function stays the same."""
    model.config._attn_implementation = PLAIN_ATTENTION


def plain_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return (batch, tokens, heads, width) values that each token attends to.

    query, key, value: (batch, heads, tokens, width). As `transformers` calls it.
    """
    tokens, width = query.shape[2:]
    is_causal_alone = attention_mask is None and key.shape[2] == tokens
    if not is_causal_alone or tokens > MAX_TOKENS:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found, None
    scale = width**-0.5 if scaling is None else scaling
    if tokens <= QUERIES_AT_ONCE and not native_attention.suits(query, dropout):
        attend_short: Any = _ShortAttention.apply
        parts = (_by_head(part) for part in (query, key, value))
        return attend_short(*parts, scale, dropout).view(query.shape).transpose(1, 2), None
    # Drawn here: what is dropped is the same again in the backward pass.
    seed = torch.randint(2**62, ()) if dropout else None
    attended: Tensor = _attend(query, key, value, scale, dropout, seed)[0]
    return attended, None


class _ShortAttention(torch.autograd.Function):
    """Of (n, tokens, width) queries, keys and values; n: of all heads of all sequences."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        query = query * scale
        weights = query @ key.transpose(1, 2)
        weights = weights.add_(later_keys(query, query.shape[1])).softmax(-1)
        noise = _dropout_noise(weights, dropout, None)
        attended = (weights * noise if dropout else weights) @ value
        ctx.save_for_backward(query, key, value, weights, noise)
        ctx.scale, ctx.dropout = scale, dropout
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, noise = ctx.saved_tensors
        of_value = (weights * noise if ctx.dropout else weights).transpose(1, 2) @ gradient
        of_weights = gradient @ value.transpose(1, 2)
        if ctx.dropout:
            of_weights *= noise
        of_scores = torch._softmax_backward_data(of_weights, weights, 2, weights.dtype)
        of_query = (of_scores @ key).mul_(ctx.scale)
        return of_query, of_scores.transpose(1, 2) @ query, of_value, None, None


# Operators of their own, so that a compiler does not look into them: it would see that the backward pass
# makes the same weights, and keep them.
@torch.library.custom_op("gptcli::attend", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return (batch, tokens, heads, width) values, and (batch, heads, tokens) for the backward pass.

    The second are native_attention's, or zeros.
    """
    if native_attention.suits(query, dropout):
        return native_attention.attend(query, key, value, scale)
    batch, heads, tokens, width = query.shape
    logarithms = query.new_zeros(batch, heads, tokens, dtype=torch.float32)
    if not dropout and query.dtype == torch.bfloat16 and multiplies_tiles():
        found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )[0]
        return found.transpose(1, 2).contiguous(), logarithms
    query, key, value = _scaled(query, scale), _by_head(key), _by_head(value)
    attended = value.new_empty(batch, tokens, heads, width)
    for first, end, weights, noise in _groups(query, key, dropout, seed):
        of_group = (weights * noise if dropout else weights) @ value[:, :end]
        attended[:, first:end] = of_group.view(batch, heads, end - first, width).transpose(1, 2)
    return attended, logarithms


@torch.library.custom_op("gptcli::attend_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    logarithms: Tensor,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value.

    gradient: (batch, tokens, heads, width). attended, logarithms: what `_attend` returned.
    """
    if native_attention.suits(query, dropout):
        return native_attention.attend_backward(gradient, query, key, value, attended, logarithms, scale)
    shape = query.shape
    query, key, value = _scaled(query, scale), _by_head(key), _by_head(value)
    gradient = _by_head(gradient.transpose(1, 2))
    of_query = torch.empty_like(query)
    # Sums over groups of queries.
    of_key, of_value = (torch.zeros_like(part, dtype=torch.float32) for part in (key, value))
    space = query.new_empty(query.shape[0] * QUERIES_AT_ONCE * query.shape[1])
    for first, end, weights, noise in _groups(query, key, dropout, seed):
        of_group = gradient[:, first:end]
        used = weights * noise if dropout else weights
        of_value[:, :end] += used.transpose(1, 2) @ of_group
        of_weights = space[: weights.numel()].view(weights.shape)
        torch.bmm(of_group, value[:, :end].transpose(1, 2), out=of_weights)
        if dropout:
            of_weights *= noise
        of_scores = torch.ops.aten._softmax_backward_data.out(
            of_weights, weights, 2, weights.dtype, grad_input=of_weights
        )
        of_query[:, first:end] = of_scores @ key[:, :end]
        of_key[:, :end] += of_scores.transpose(1, 2) @ query[:, first:end]
    of_query *= scale
    return of_query.view(shape), of_key.to(key.dtype).view(shape), of_value.to(value.dtype).view(shape)


def _by_head(part: Tensor) -> Tensor:
    """Return (n, tokens, width) of (batch, heads, tokens, width); n: all heads of all sequences."""
    return part.reshape(-1, *part.shape[2:])


def _scaled(query: Tensor, scale: float) -> Tensor:
    """Return the same of queries, times `scale`."""
    scaled = torch.empty_like(query, memory_format=torch.contiguous_format)
    return _by_head(torch.mul(query, scale, out=scaled))


def _groups(
    query: Tensor, key: Tensor, dropout: float, seed: Tensor | None
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield of each group of queries the first, the end, the attention weights, and their noise.

    The weights of a group take the place of those before.
    """
    heads, tokens, _ = query.shape
    # Of a group, the last keys are as many as its queries: each looks at those up to its own.
    later = later_keys(query, min(tokens, QUERIES_AT_ONCE))
    generator = None if seed is None else torch.Generator().manual_seed(int(seed))
    space = query.new_empty(heads * len(later) * tokens)
    for first in range(0, tokens, QUERIES_AT_ONCE):
        end = min(first + QUERIES_AT_ONCE, tokens)
        size = end - first
        weights = space[: heads * size * end].view(heads, size, end)
        torch.bmm(query[:, first:end], key[:, :end].transpose(1, 2), out=weights)
        weights[..., first:] += later[:size, :size]
        torch.softmax(weights, -1, out=weights)
        yield first, end, weights, _dropout_noise(weights, dropout, generator)


def _dropout_noise(weights: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Return what to multiply weights with: 0, or what makes up for those; (0,) without dropout."""
    if not probability:
        return weights.new_empty(0)
    noise = torch.empty_like(weights).bernoulli_(1 - probability, generator=generator)
    return noise.div_(1 - probability)


@_attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = query.shape
    attended = value.new_empty(batch, tokens, heads, width)
    return attended, query.new_empty(batch, heads, tokens, dtype=torch.float32)


@_attend_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    logarithms: Tensor,
    scale: float,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.scale, ctx.dropout, seed = inputs
    ctx.save_for_backward(query, key, value, *output, seed)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, seed = ctx.saved_tensors
    gradients: tuple[Tensor, Tensor, Tensor] = _attend_backward(
        gradient, *saved, ctx.scale, ctx.dropout, seed
    )
    return *gradients, None, None, None


_attend.register_autograd(_backward, setup_context=_save_for_backward)

AttentionInterface.register(PLAIN_ATTENTION, plain_attention)
# None where causal attention is all that is asked for, as for the fused kernel.
AttentionMaskInterface.register(PLAIN_ATTENTION, sdpa_mask)
