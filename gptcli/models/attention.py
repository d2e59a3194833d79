"""Causal attention on a CPU as plain matrix products and a softmax, for some queries at a time.

torch's fused kernel for CPUs saves the memory of the attention weights, but multiplies in small blocks,
and makes the weights again in its backward pass. Up to a few thousand tokens, where that memory is
little, plain products are faster. Queries are taken in groups, so that most of the keys that come later
than a group are left out; the weights are kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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
    batch, heads, tokens, width = query.shape
    is_causal_alone = attention_mask is None and key.shape[2] == tokens
    if not is_causal_alone or tokens > MAX_TOKENS:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found, None
    parts = (part.reshape(batch * heads, tokens, width) for part in (query, key, value))
    attend: Any = _CausalAttention.apply
    attended = attend(*parts, width**-0.5 if scaling is None else scaling, dropout)
    return attended.view(batch, heads, tokens, width).transpose(1, 2), None


def group_weights(query: Tensor, keys: Tensor, first: int, end: int, hidden: Tensor) -> Tensor:
    """Return (..., end - first, end): the attention weights of a group of queries.

    query: (..., tokens, width), scaled. keys: (..., width, tokens). hidden: added to the scores of the
    group's last keys, as many as it has columns: minus infinity where a query does not look.
    """
    scores = query[..., first:end, :] @ keys[..., :end]
    scores[..., end - hidden.shape[-1] :] += hidden
    return scores.softmax(-1)


def later_keys(query: Tensor, count: int) -> Tensor:
    """Return (count, count): minus infinity where a column's token is later than the row's."""
    return query.new_full((count, count), -torch.inf).triu_(1)


class _CausalAttention(torch.autograd.Function):
    """Of (n, tokens, width) queries, keys and values; n: of all heads of all sequences."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        tokens = query.shape[1]
        query = query * scale
        # Of a group, the last keys are as many as its queries: each looks at those up to its own.
        later = later_keys(query, QUERIES_AT_ONCE)
        attended = torch.empty_like(value)
        kept: list[Tensor] = []
        for first in range(0, tokens, QUERIES_AT_ONCE):
            end = min(first + QUERIES_AT_ONCE, tokens)
            hidden = later[: end - first, : end - first]
            weights = group_weights(query, key.transpose(1, 2), first, end, hidden)
            noise = _dropout_noise(weights, dropout)
            attended[:, first:end] = (weights * noise if dropout else weights) @ value[:, :end]
            kept += (weights, noise)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale, ctx.dropout = scale, dropout
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *kept = ctx.saved_tensors
        tokens = query.shape[1]
        of_query = torch.empty_like(query)
        # Sums over groups of queries.
        of_key, of_value = (torch.zeros_like(part, dtype=torch.float32) for part in (key, value))
        for number, first in enumerate(range(0, tokens, QUERIES_AT_ONCE)):
            end = min(first + QUERIES_AT_ONCE, tokens)
            weights, noise = kept[2 * number : 2 * number + 2]
            of_group = gradient[:, first:end]
            used = weights * noise if ctx.dropout else weights
            of_value[:, :end] += used.transpose(1, 2) @ of_group
            of_weights = of_group @ value[:, :end].transpose(1, 2)
            if ctx.dropout:
                of_weights *= noise
            of_scores = torch._softmax_backward_data(of_weights, weights, 2, weights.dtype)
            of_query[:, first:end] = of_scores @ key[:, :end]
            of_key[:, :end] += of_scores.transpose(1, 2) @ query[:, first:end]
        of_query *= ctx.scale
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None


def _dropout_noise(weights: Tensor, probability: float) -> Tensor:
    """Return what to multiply weights with: 0, or what makes up for those; (0,) without dropout."""
    if not probability:
        return weights.new_empty(0)
    return torch.empty_like(weights).bernoulli_(1 - probability).div_(1 - probability)


AttentionInterface.register(PLAIN_ATTENTION, plain_attention)
# None where causal attention is all that is asked for, as for the fused kernel.
AttentionMaskInterface.register(PLAIN_ATTENTION, sdpa_mask)
