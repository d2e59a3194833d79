"""GPT-2's hidden states, by fewer and faster kernels than those of transformers' own forward pass.

The mathematics is the same. What differs, most of all on a CPU in bfloat16:

1. Weights are laid out once as the matrix product wants them, not anew in each call, and the product
   computes the activation behind it too.
2. Attention is plain products and a softmax, for some queries at a time: with GPT-2's short contexts
   that is faster than a fused kernel.
3. Behind the last layer's attention, only tokens that are asked for go on.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.models.attention import group_weights, later_keys

# Few enough for a core's cache, and to leave out most of the keys that come later.
QUERIES_AT_ONCE = 128


class PackedLinear:
    """A product with a weight matrix, and what is done to each of its outputs."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, activation: nn.Module | None = None
    ) -> None:
        """weight: (outputs, inputs). The layout that is made of it takes as much memory again."""
        self._weight, self._bias, self._activation = weight.detach(), bias, activation
        # The compiler of torch uses these, but they are not public: they may not be there.
        self._is_packed = _is_bfloat16_on_cpu(weight) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        if self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous())

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) of (n, inputs)."""
        activation = self._activation
        if not self._is_packed:
            outputs: Tensor = F.linear(inputs, self._weight, self._bias)
        elif isinstance(activation, nn.GELU):
            outputs = self._product(inputs, "gelu", activation.approximate)
            activation = None
        else:
            outputs = self._product(inputs, "none", "")
        return outputs if activation is None else cast(Tensor, activation(outputs))

    def _product(self, inputs: Tensor, activation: str, variant: str) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, activation, [], variant
        )
        return outputs


class ScoringForward:
    """The layers of a model that is not trained any more."""

    def __init__(self, model: Any) -> None:
        """model: a GPT2LMHeadModel; later changes of its weights need not be seen."""
        transformer = model.transformer
        self._token_embedding: Tensor = transformer.wte.weight
        self._position_embedding: Tensor = transformer.wpe.weight
        self._layers = [_Layer(block) for block in transformer.h]
        self._ln_f: nn.LayerNorm = transformer.ln_f

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
            mixed = layer.attend(hidden, rows, mask)
            if number == len(self._layers):
                hidden, mixed = hidden[kept], mixed[kept]
            hidden = hidden + layer.attention_output(mixed)
            hidden = hidden + layer.mlp_output(layer.mlp_input(layer.ln_2(hidden)))
        return cast(Tensor, self._ln_f(hidden))


class _Layer:
    def __init__(self, block: Any) -> None:
        def linear(module: Any, activation: nn.Module | None = None) -> PackedLinear:
            # GPT-2's weights are (inputs, outputs).
            return PackedLinear(module.weight.t(), module.bias, activation)

        attention, mlp = block.attn, block.mlp
        self._ln_1, self.ln_2 = block.ln_1, block.ln_2
        self._heads, self._scale = int(attention.num_heads), float(attention.scaling)
        self._attention_input = linear(attention.c_attn)
        self.attention_output = linear(attention.c_proj)
        self.mlp_input = linear(mlp.c_fc, mlp.act)
        self.mlp_output = linear(mlp.c_proj)

    def attend(self, hidden: Tensor, rows: int, mask: Tensor | None) -> Tensor:
        """Return (rows * tokens, width) of the same. mask: (rows, 1, tokens, tokens), for the scores."""
        size = hidden.shape[1] // self._heads
        parts = self._attention_input(self._ln_1(hidden)).view(rows, -1, 3, self._heads, size)
        # (rows, heads, tokens, size) each.
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if _is_bfloat16_on_cpu(hidden):
            mixed = attention_in_parts(query, key, value, self._scale, mask)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, mask, is_causal=mask is None, scale=self._scale
            )
        return mixed.transpose(1, 2).reshape(hidden.shape)


def attention_in_parts(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> Tensor:
    """Return softmax(query key^T * scale + mask) value, for some queries at a time.

    query, key, value: (rows, heads, tokens, width). mask: (rows, 1, tokens, tokens), -inf for all that
    comes later; None: for nothing else.
    """
    rows, heads, tokens, width = query.shape
    mixed = query.new_empty(rows, tokens, heads, width).transpose(1, 2)
    later = later_keys(query, QUERIES_AT_ONCE)
    query, key, value = query * scale, key.transpose(2, 3).contiguous(), value.contiguous()
    for first in range(0, tokens, QUERIES_AT_ONCE):
        end = min(first + QUERIES_AT_ONCE, tokens)
        size = end - first
        hidden = later[:size, :size] if mask is None else mask[:, :, first:end, :end]
        weights = group_weights(query, key, first, end, hidden)
        mixed[:, :, first:end] = weights @ value[:, :, :end]
    return mixed


def _is_bfloat16_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16
