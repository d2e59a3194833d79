"""A layer of a GPT-2 that is not trained any more, all but its attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gptcli.models.packed_linear import PackedLinear


class PackedLayer:
    """The products of a layer, and its layer norms."""

    def __init__(self, block: Any, dtype: torch.dtype, *, is_int8: bool = False) -> None:
        """block: a GPT2Block. dtype: of what goes in and comes out."""

        def linear(module: Any, activation: nn.Module | None = None) -> PackedLinear:
            # GPT-2's weights are (inputs, outputs).
            weight, bias = module.weight.detach().to(dtype).t(), module.bias.detach().to(dtype)
            return PackedLinear(weight, bias, activation, is_int8=is_int8)

        attention, mlp = block.attn, block.mlp
        self.heads, self.size = int(attention.num_heads), int(attention.head_dim)
        self.scale = float(attention.scaling)
        self._ln_1, self._ln_2 = LayerNorm(block.ln_1, dtype), LayerNorm(block.ln_2, dtype)
        self._attention_input = linear(attention.c_attn)
        self._attention_output = linear(attention.c_proj)
        self._mlp_input = linear(mlp.c_fc, mlp.act)
        self._mlp_output = linear(mlp.c_proj)

    def queries_keys_values(self, hidden: Tensor) -> Tensor:
        """Return (n, 3 * heads * size) of (n, width)."""
        return self._attention_input(self._ln_1(hidden))

    def behind_attention(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Return (n, width), of what the layer was given and the values that its tokens attended to."""
        hidden = self._attention_output(mixed).add_(hidden)
        return self._mlp_output(self._mlp_input(self._ln_2(hidden))).add_(hidden)


class LayerNorm:
    """A layer norm in a number format of its own."""

    def __init__(self, module: nn.LayerNorm, dtype: torch.dtype) -> None:
        self._weight, self._bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
        self._size, self._epsilon = module.normalized_shape, module.eps

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the same shape."""
        return torch.layer_norm(hidden, self._size, self._weight, self._bias, self._epsilon)
