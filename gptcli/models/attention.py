"""Causal attention as two matrix products and a softmax, for short sequences on a CPU.

torch's fused kernel for CPUs saves the memory of the attention weights, but multiplies in small blocks:
up to about 512 tokens, where that memory is little, the plain products are faster.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PLAIN_ATTENTION = "gptcli_plain_attention"
MAX_TOKENS = 512


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
    scores = torch.baddbmm(
        _later_tokens(tokens, query.dtype).expand(batch * heads, -1, -1),
        query.reshape(batch * heads, tokens, width),
        key.reshape(batch * heads, tokens, width).transpose(1, 2),
        alpha=width**-0.5 if scaling is None else scaling,
    )
    weights = F.dropout(scores.softmax(-1), dropout)
    attended = torch.bmm(weights, value.reshape(batch * heads, tokens, width))
    return attended.view(batch, heads, tokens, width).transpose(1, 2), None


@lru_cache(maxsize=16)
def _later_tokens(tokens: int, dtype: torch.dtype) -> Tensor:
    """Return (1, tokens, tokens): minus infinity where a column's token is later than the row's."""
    with torch.inference_mode(False):
        return torch.full((1, tokens, tokens), -torch.inf, dtype=dtype).triu(1)


AttentionInterface.register(PLAIN_ATTENTION, plain_attention)
# None where causal attention is all that is asked for, as for the fused kernel.
AttentionMaskInterface.register(PLAIN_ATTENTION, sdpa_mask)
