"""How much each token looks at each earlier one: softmax(Q K^T / sqrt(d_k)) of every head.

Vaswani et al. 2017, section 3.2.1 (https://arxiv.org/abs/1706.03762), with later tokens masked:

1. The model reads the text as always. Of each layer, a hook keeps what its first product (`c_attn`)
   gives: queries, keys and values of all heads, side by side, (tokens, 3 * width).
2. Queries and keys are parted by heads: Q and K are (heads, tokens, d_k), d_k = width / heads.
3. Q K^T / sqrt(d_k) scores every pair of tokens, (heads, tokens, tokens). What comes later gets minus
   infinity, and the softmax of a row makes weights that sum to 1.

So they do not depend on the kernel by which the model attends, which keeps no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.inference_mode()
def attention_weights(
    transformer: Any, input_ids: Sequence[int], layers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return the weights of some layers, and the hidden states behind the last layer norm.

    transformer: a GPT2Model in evaluation mode. layers: their numbers, from 0.
    Returns (layers, heads, tokens, tokens) in float32 on the CPU, a row for each token that looks, and
    (tokens, width).
    """
    products: dict[int, Tensor] = {}
    hooks = []
    for layer in layers:

        def keep(module: Any, inputs: Any, output: Tensor, layer: int = layer) -> None:
            products[layer] = output[0]

        hooks.append(transformer.h[layer].attn.c_attn.register_forward_hook(keep))
    try:
        inputs = torch.tensor([list(input_ids)], device=transformer.wte.weight.device)
        hidden = transformer(input_ids=inputs, use_cache=False).last_hidden_state[0]
    finally:
        for hook in hooks:
            hook.remove()
    weights = [_weights(transformer.h[layer].attn, products[layer]) for layer in layers]
    return torch.stack(weights), hidden


def _weights(attention: Any, product: Tensor) -> Tensor:
    """Return (heads, tokens, tokens) of a layer. product: (tokens, 3 * width)."""
    tokens = len(product)
    query, key, _ = product.float().view(tokens, 3, attention.num_heads, -1).permute(1, 2, 0, 3)
    # 1 / sqrt(d_k), unless the model's config.json says otherwise.
    scores = query @ key.transpose(1, 2) * attention.scaling
    later = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1)
    weights: Tensor = scores.masked_fill(later, -torch.inf).softmax(-1).cpu()
    return weights
