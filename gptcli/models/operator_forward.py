"""GPT-2's layers and head for new tokens by torch's operators, on any device.

No mask is made where all rows have the same length, but for steps that are recorded (step_graphs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptcli.models.packed_layer import LayerNorm, PackedLayer
from gptcli.models.packed_linear import PackedLinear
from gptcli.models.scoring_forward import attention_in_parts


class OperatorForward:
    """A GPT2LMHeadModel laid out for torch's operators."""

    def __init__(self, model: Any, head: Tensor, dtype: torch.dtype, *, is_int8: bool) -> None:
        """head: (vocabulary, width). dtype, is_int8: as for DecodingForward."""
        transformer = model.transformer
        self.dtype = self.kept_dtype = dtype
        # First: what is freed after it, the largest matrix by far, is enough to make the others in.
        self._head = PackedLinear(head, is_int8=is_int8)
        self._layers = [PackedLayer(block, dtype, is_int8=is_int8) for block in transformer.h]
        self._ln_f = LayerNorm(transformer.ln_f, dtype)

    def hidden_states(
        self, embedded: Tensor, lengths: Sequence[int], starts: Sequence[int], parts: Tensor
    ) -> Tensor:
        """Return (n, width), behind the last layer norm, of the new tokens of the first rows.

        embedded: the same, of type `dtype`. lengths: how many tokens each row has. starts: the place of
        each row's first one; the same, if a row has several. parts: keys and values (layers, 2, rows,
        heads, capacity, size), of type `kept_dtype`, to which those of the new tokens are added.
        """
        if min(lengths) == max(lengths):
            of_rows = embedded.view(len(lengths), lengths[0], -1)
            return self._of_rows(of_rows, starts, parts).flatten(0, 1)
        # Padded on the right, where causal attention never looks.
        padded = pad_sequence([*torch.split(embedded, [*lengths])], batch_first=True)
        hidden = self._of_rows(padded, starts, parts)
        return torch.cat([row[:length] for row, length in zip(hidden, lengths, strict=True)])

    def _of_rows(self, embedded: Tensor, starts: Sequence[int], parts: Tensor) -> Tensor:
        """Return (rows, tokens, width) of the same."""
        rows, tokens, _ = embedded.shape
        end = max(starts) + tokens
        parts = parts[:, :, :rows, :, :end]
        if min(starts) + tokens == end:
            return self._through_layers(embedded, slice(starts[0], end), parts, None)
        return self.step(embedded, torch.tensor(starts, device=embedded.device)[:, None], parts)

    def step(self, embedded: Tensor, places: Tensor, parts: Tensor) -> Tensor:
        """Return (rows, tokens, width), behind the last layer norm, of new tokens of all rows.

        embedded: the same, of type `dtype`. places: (rows, tokens), of each in its row. parts: keys and
        values (layers, 2, rows, heads, end, size), to which those of the new tokens are added; a token
        attends to all of its row up to its own place.

        What is done depends on shapes alone: a CUDA graph of it serves for all numbers in the tensors.
        """
        later = torch.arange(parts.shape[4], device=places.device) > places[..., None]
        mask = torch.zeros(later.shape, dtype=self.dtype, device=places.device)
        mask = mask.masked_fill_(later, -torch.inf)[:, None]
        return self._through_layers(embedded, places, parts, mask)

    def _through_layers(
        self, embedded: Tensor, places: slice | Tensor, parts: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Return the same. places: a slice, if they are the same ones in all rows, the last of `parts`.

        mask: (rows, 1, tokens, end), for the scores; None: a token attends to all up to itself.
        """
        rows, tokens, _ = embedded.shape
        hidden = embedded.flatten(0, 1)
        # Views of all layers at once: between the products of one row, each operation counts.
        all_keys, all_values = (kind.unbind() for kind in parts.unbind(1))
        if isinstance(places, slice):
            of_places = parts[..., places, :].unbind()
        else:
            row_numbers = torch.arange(rows, device=embedded.device)[:, None]
        shape = (rows, tokens, 3, parts.shape[3], parts.shape[5])
        for number, layer in enumerate(self._layers):
            new = layer.queries_keys_values(hidden).view(shape)
            by_heads = new.permute(2, 0, 3, 1, 4)  # (3, rows, heads, tokens, size).
            if isinstance(places, slice):
                of_places[number].copy_(by_heads[1:])
            else:
                parts[number, :, row_numbers, :, places] = new[:, :, 1:]
            mixed = _attended(by_heads[0], all_keys[number], all_values[number], mask, layer.scale)
            hidden = layer.behind_attention(hidden, mixed.transpose(1, 2).reshape(hidden.shape))
        return self._ln_f(hidden).view(embedded.shape)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (n, vocabulary) of (n, width)."""
        return self._head(hidden)


def _attended(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return (rows, heads, tokens, size) of the same; the new tokens are the last of the keys."""
    tokens = query.shape[2]
    if tokens == 1 or mask is not None:
        return F.scaled_dot_product_attention(query, keys, values, mask, scale=scale)
    is_usual = query.device.type != "cpu" or query.dtype == torch.float32
    if tokens == keys.shape[2] and is_usual:
        return F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scale)
    return attention_in_parts(query, keys, values, scale, None)
