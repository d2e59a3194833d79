"""GPT-2's next step: the tokens that are new, with what those before them have left.

Keys and values lie in memory that is set aside once, a row a text; rows are as long as they are, each
with a length of its own. No mask is made where all have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.models.packed_layer import LayerNorm, PackedLayer
from gptcli.models.packed_linear import PackedLinear
from gptcli.models.scoring_forward import attention_in_parts


class KeysAndValues:
    """What the tokens of some rows have left for the attention of later ones."""

    def __init__(self, parts: Tensor) -> None:
        """parts: (layers, 2, rows, heads, capacity, size), keys and then values."""
        self.parts = parts

    @property
    def rows(self) -> int:
        return self.parts.shape[2]

    @property
    def capacity(self) -> int:
        """Tokens that a row has room for."""
        return self.parts.shape[4]

    def fill_row(self, row: int, source: KeysAndValues, source_row: int, tokens: int) -> None:
        """Copy the first tokens of another's row, or of one of its own, into a row."""
        self.parts[:, :, row, :, :tokens] = source.parts[:, :, source_row, :, :tokens]


class DecodingForward:
    """The layers and the head of a GPT2LMHeadModel that is not trained any more."""

    def __init__(self, model: Any, dtype: torch.dtype, *, is_int8: bool = False) -> None:
        """dtype: of all that is computed; is_int8: but for products, with weights as bytes (float32).

        Later changes of the model's weights need not be seen.
        """
        transformer = model.transformer
        self.context_length: int = model.config.n_positions
        self._token_embedding: Tensor = transformer.wte.weight.detach()
        self._position_embedding: Tensor = transformer.wpe.weight.detach().to(dtype)
        self._layers = [PackedLayer(block, dtype, is_int8=is_int8) for block in transformer.h]
        self._ln_f = LayerNorm(transformer.ln_f, dtype)
        self._head = PackedLinear(head_weight(model, dtype, is_int8=is_int8), is_int8=is_int8)
        self._dtype = dtype

    @property
    def device(self) -> torch.device:
        return self._token_embedding.device

    def new_keys_and_values(self, rows: int, capacity: int) -> KeysAndValues:
        """Return room for `rows` texts of at most `capacity` tokens."""
        heads, width = self._layers[0].heads, self._position_embedding.shape[1]
        shape = (len(self._layers), 2, rows, heads, capacity, width // heads)
        # Zeros: of what a mask leaves out, no weight is left, but what is not finite would not go away.
        return KeysAndValues(torch.zeros(shape, dtype=self._dtype, device=self.device))

    def bytes_per_token(self) -> int:
        """Return the memory that a token's keys and values take."""
        return 2 * len(self._layers) * self._position_embedding.shape[1] * self._dtype.itemsize

    @torch.inference_mode()
    def hidden_states(self, input_ids: Tensor, starts: Sequence[int], earlier: KeysAndValues) -> Tensor:
        """Return (rows, tokens, width), behind the last layer norm, of new tokens of the first rows.

        input_ids: (rows, tokens). starts: how many tokens of each row are in `earlier`, to which the new
        ones are added; several new tokens begin at the same place in all rows.
        """
        rows, tokens = input_ids.shape
        begin, end = starts[0], max(starts) + tokens
        is_even = min(starts) + tokens == end
        assert end <= earlier.capacity and (is_even or tokens == 1)
        parts = earlier.parts[:, :, :rows]
        mask = None
        if is_even:
            position_embedding = self._position_embedding[begin:end]
            places = parts[..., begin:end, :].unbind()
        else:
            where = torch.tensor(starts, device=self.device)
            position_embedding = self._position_embedding[where[:, None]]
            later = torch.arange(end, device=self.device) > where[:, None]
            mask = torch.zeros(later.shape, dtype=self._dtype, device=self.device)
            mask = mask.masked_fill_(later, -torch.inf)[:, None, None]
            row_numbers = torch.arange(rows, device=self.device)
        embedded = F.embedding(input_ids, self._token_embedding).to(self._dtype) + position_embedding
        hidden = embedded.flatten(0, 1)
        # Views of all layers at once: between the products of one row, each operation counts.
        all_keys, all_values = (kind.unbind() for kind in parts[..., :end, :].unbind(1))
        shape = (rows, tokens, 3, self._layers[0].heads, self._layers[0].size)
        for number, layer in enumerate(self._layers):
            new = layer.queries_keys_values(hidden).view(shape)
            new = new.permute(2, 0, 3, 1, 4)  # (3, rows, heads, tokens, size).
            if is_even:
                places[number].copy_(new[1:])
            else:
                parts[number, :, row_numbers, :, where] = new[1:, :, :, 0].transpose(0, 1)
            mixed = _attended(new[0], all_keys[number], all_values[number], mask, layer.scale)
            hidden = layer.behind_attention(hidden, mixed.transpose(1, 2).reshape(hidden.shape))
        return self._ln_f(hidden).view(rows, tokens, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return (n, vocabulary) of (n, width), up to a number that is added to all of a row alike."""
        return self._head(hidden)


def head_weight(model: Any, dtype: torch.dtype, *, is_int8: bool = False) -> Tensor:
    """Return the head's (vocabulary, width) matrix, less its mean where numbers are rounded.

    Softmax does not see what is added to all scores alike. GPT-2 adds about -100, of which bfloat16's 8
    bits leave steps of a half; without it, the scores that matter are small.
    """
    weight: Tensor = model.lm_head.weight.detach()
    if dtype == torch.float32 and not is_int8:
        return weight.to(dtype)
    weight = weight.float()
    return (weight - weight.mean(0)).to(dtype)


def _attended(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return (rows, heads, tokens, size) of the same; the new tokens are the last of the keys."""
    tokens = query.shape[2]
    if tokens == 1:
        return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale)
    is_usual = query.device.type != "cpu" or query.dtype == torch.float32
    if tokens == keys.shape[2] and is_usual:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale)
    return attention_in_parts(query, keys, values, scale, None)
