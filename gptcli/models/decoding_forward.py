"""GPT-2's next step: the tokens that are new, with what those before them have left.

Keys and values lie in memory that is set aside once, a row a text; rows are as long as they are, each
with a length of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.models.native_forward import NativeForward
from gptcli.models.operator_forward import OperatorForward
from gptcli.models.step_graphs import StepGraphs
from gptcli.native.kernels import load_kernels

# Of the head, whose rows are few numbers each: what lies in a core's cache.
_ROWS_AT_ONCE = 512
# Devices whose steps are done in a few sizes, to be recorded.
_RECORDED_ON = ("cuda",)


class KeysAndValues:
    """What the tokens of some rows have left for the attention of later ones."""

    def __init__(self, parts: Tensor, graphs: StepGraphs | None) -> None:
        """parts: (layers, 2, rows, heads, capacity, size), keys and then values.

        graphs: of steps over these; None where steps are not recorded.
        """
        self.parts, self.graphs = parts, graphs

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

    def __init__(
        self, model: Any, dtype: torch.dtype, *, is_int8: bool = False, is_native: bool = True
    ) -> None:
        """dtype: of all that is computed; is_int8: but for products, with weights as bytes (float32).

        is_native: whether compiled code may do it, where it can. Later changes of the model's weights
        need not be seen.
        """
        transformer = model.transformer
        self.context_length: int = model.config.n_positions
        self.device: torch.device = transformer.wte.weight.device
        is_native = is_native and (is_int8 or dtype == torch.bfloat16) and self.device.type == "cpu"
        kernel = load_kernels("forward") if is_native and NativeForward.suits(model) else None
        head = head_weight(model, dtype, is_int8=is_int8)
        self._forward: NativeForward | OperatorForward
        if kernel is not None:
            self._forward = NativeForward(kernel, model, head, is_int8=is_int8)
        else:
            self._forward = OperatorForward(model, head, dtype, is_int8=is_int8)
        self._is_recorded = self.device.type in _RECORDED_ON and kernel is None
        self._token_embedding: Tensor = transformer.wte.weight.detach()
        self._position_embedding: Tensor = transformer.wpe.weight.detach().to(self._forward.dtype)
        config = model.config
        self._heads: int = config.n_head
        self._size: int = config.n_embd // config.n_head
        self._layer_count: int = config.n_layer

    def new_keys_and_values(self, rows: int, capacity: int) -> KeysAndValues:
        """Return room for `rows` texts of at most `capacity` tokens."""
        shape = (self._layer_count, 2, rows, self._heads, capacity, self._size)
        # Zeros: of what a mask leaves out, no weight is left, but what is not finite would not go away.
        parts = torch.zeros(shape, dtype=self._forward.kept_dtype, device=self.device)
        return KeysAndValues(parts, StepGraphs(self._step, parts) if self._is_recorded else None)

    def bytes_per_token(self) -> int:
        """Return the memory that a token's keys and values take."""
        numbers = 2 * self._layer_count * self._heads * self._size
        return numbers * self._forward.kept_dtype.itemsize

    @torch.inference_mode()
    def hidden_states(
        self, new_ids: Sequence[Sequence[int]], starts: Sequence[int], earlier: KeysAndValues
    ) -> Tensor:
        """Return (n, width), behind the last layer norm, of the new tokens of the first rows.

        new_ids: of each row, at least one; n in all, row after row. starts: how many tokens of each row
        are in `earlier`, to which the new ones are added. Several new tokens of a row begin at the same
        place in all rows. What lies behind new tokens, and in rows behind these, may be written over.
        """
        lengths = [len(ids) for ids in new_ids]
        assert max(map(sum, zip(starts, lengths, strict=True))) <= earlier.capacity
        assert len(lengths) <= earlier.rows and (max(lengths) == 1 or min(starts) == max(starts))
        if earlier.graphs is not None and (size := earlier.graphs.size_of(lengths, starts)):
            return earlier.graphs.hidden_states(size, new_ids, starts)
        ids = [token_id for ids in new_ids for token_id in ids]
        positions = [
            start + n for start, length in zip(starts, lengths, strict=True) for n in range(length)
        ]
        where = torch.tensor([ids, positions], device=self.device)
        return self._forward.hidden_states(self._embedded(*where), lengths, starts, earlier.parts)

    def _step(self, inputs: Tensor, parts: Tensor) -> Tensor:
        """Return (rows, tokens, width) of one step; inputs, parts: as for StepGraphs."""
        assert isinstance(self._forward, OperatorForward)
        ids, places = inputs
        return self._forward.step(self._embedded(ids, places), places, parts)

    def _embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Return (..., width) of the same shape."""
        embedded = F.embedding(ids, self._token_embedding).to(self._forward.dtype)
        return embedded + F.embedding(positions, self._position_embedding)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return (n, vocabulary) of (n, width), up to a number that is added to all of a row alike."""
        return self._forward.logits(hidden)


def head_weight(model: Any, dtype: torch.dtype, *, is_int8: bool = False) -> Tensor:
    """Return the head's (vocabulary, width) matrix, less its mean where numbers are rounded.

    Softmax does not see what is added to all scores alike. GPT-2 adds about -100, of which bfloat16's 8
    bits leave steps of a half; without it, the scores that matter are small.
    """
    weight: Tensor = model.lm_head.weight.detach()
    if dtype == torch.float32 and not is_int8:
        return weight.to(dtype)
    mean = weight.mean(0, dtype=torch.float32)
    centred = torch.empty_like(weight, dtype=dtype)
    # Some rows at a time: all of them in float32 would take time and memory.
    parts = (torch.split(matrix, _ROWS_AT_ONCE) for matrix in (weight, centred))
    for rows, of_rows in zip(*parts, strict=True):
        of_rows.copy_(rows.float() - mean)
    return centred
