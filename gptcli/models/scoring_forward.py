"""GPT-2's hidden states, by fewer and faster kernels than those of transformers' own forward pass.

The mathematics is the same. What differs, most of all on a CPU in bfloat16:

1. Weights are laid out once as the matrix product wants them (`packed_linear`).
2. Attention is plain products and a softmax, for some queries at a time: with GPT-2's short contexts
   that is faster than a fused kernel.
3. Behind the last layer's attention, only tokens that are asked for go on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.models.attention_mask import later_keys
from gptcli.models.packed_layer import LayerNorm, PackedLayer

# Few enough for a core's cache, and to leave out most of the keys that come later.
QUERIES_AT_ONCE = 128


class ScoringForward:
    """The layers of a model that is not trained any more."""

    def __init__(self, model: Any, *, is_int8: bool = False) -> None:
        """model: any GPT-2 of transformers; later changes of its weights need not be seen.

        is_int8: products with weights as bytes, of a model in float32.
        """
        transformer = model.transformer
        self._token_embedding: Tensor = transformer.wte.weight
        self._position_embedding: Tensor = transformer.wpe.weight
        dtype = self._token_embedding.dtype
        self._layers = [PackedLayer(block, dtype, is_int8=is_int8) for block in transformer.h]
        self._ln_f = LayerNorm(transformer.ln_f, dtype)

    @torch.inference_mode()
    def hidden_states(
        self,
        input_ids: Tensor,
        kept: Tensor,
        positions: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Return (k, width), behind the last layer norm, of the tokens `kept`.

        input_ids: (rows, tokens). kept: (k,), numbers of tokens, counted through all rows. positions:
        (rows, tokens), of each in its text; None: as in the row. seen: (rows, tokens, tokens) bool,
        whether the token of a row looks at that of a column, which must not be a later one; None: at
        all up to itself.
        """
        rows, tokens = input_ids.shape
        if positions is None:
            positions = torch.arange(tokens, device=input_ids.device)
        hidden = self._token_embedding[input_ids] + self._position_embedding[positions]
        mask = None
        if seen is not None:
            mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill_(~seen, -torch.inf)[:, None]
        hidden = hidden.flatten(0, 1)
        for number, layer in enumerate(self._layers, 1):
            mixed = _attended(layer, hidden, rows, mask)
            if number == len(self._layers):
                hidden, mixed = hidden[kept], mixed[kept]
            hidden = layer.behind_attention(hidden, mixed)
        return self._ln_f(hidden)


def _attended(layer: PackedLayer, hidden: Tensor, rows: int, mask: Tensor | None) -> Tensor:
    """Return (rows * tokens, width) of the same. mask: (rows, 1, tokens, tokens), for the scores."""
    parts = layer.queries_keys_values(hidden).view(rows, -1, 3, layer.heads, layer.size)
    # (rows, heads, tokens, size) each.
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    if hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16:
        mixed = attention_in_parts(query, key, value, layer.scale, mask)
    else:
        mixed = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=layer.scale
        )
    return mixed.transpose(1, 2).reshape(hidden.shape)


def attention_in_parts(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> Tensor:
    """Return softmax(query key^T * scale + mask) value, for some queries at a time.

    query: (rows, heads, tokens, width). key, value: the same, or of more tokens, of which the queries'
    are the last. mask: (rows, 1, tokens, tokens), -inf for all that comes later; None: for nothing else.
    """
    rows, heads, tokens, width = query.shape
    before = key.shape[2] - tokens
    mixed = query.new_empty(rows, tokens, heads, width).transpose(1, 2)
    later = later_keys(query, QUERIES_AT_ONCE)
    query, key, value = query * scale, key.transpose(2, 3).contiguous(), value.contiguous()
    for first in range(0, tokens, QUERIES_AT_ONCE):
        end = min(first + QUERIES_AT_ONCE, tokens)
        size, seen = end - first, before + end
        hidden = later[:size, :size] if mask is None else mask[:, :, first:end, :end]
        scores = query[:, :, first:end] @ key[..., :seen]
        scores[..., seen - hidden.shape[-1] :] += hidden
        mixed[:, :, first:end] = scores.softmax(-1) @ value[:, :, :seen]
    return mixed
