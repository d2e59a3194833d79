"""Products with the matrices of a model that is not trained any more, in the layout that is fastest.

A single row, as a decoder has it, is all reading of weights: half the bytes are half the time. On a CPU,
bfloat16 goes through oneDNN, which takes a matrix laid out once, not anew in each call; float32 through
torch's own product, which reads the weights where they are.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.models.int8_matrix import Int8Matrix


class PackedLinear:
    """A product with a weight matrix, and what is done to each of its outputs."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: nn.Module | None = None,
        *,
        is_int8: bool = False,
    ) -> None:
        """weight: (outputs, inputs). A layout that is made of it takes memory of its own.

        is_int8: weights as bytes; inputs and outputs are float32.
        """
        self._bias, self._activation = bias, activation
        self._bytes = Int8Matrix(weight, bias) if is_int8 else None
        if self._bytes is not None:
            return
        self._weight = weight.detach()
        # The compiler of torch uses these, but they are not public: they may not be there.
        self._is_packed = _is_bfloat16_on_cpu(weight) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        if self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous())

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) of (n, inputs)."""
        activation = self._activation
        if self._bytes is not None:
            outputs = self._bytes.product(inputs)
        elif not self._is_packed:
            outputs = F.linear(inputs, self._weight, self._bias)
        elif isinstance(activation, nn.GELU):
            return self._bfloat16_product(inputs, "gelu", activation.approximate)
        else:
            outputs = self._bfloat16_product(inputs, "none", "")
        if activation is None:
            return outputs
        # Not by way of nn.Module, which takes longer than the function on one row.
        return cast(Tensor, activation.forward(outputs))

    def _bfloat16_product(self, inputs: Tensor, activation: str, variant: str) -> Tensor:
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._weight, self._bias, activation, [], variant
        )
        return outputs


def _is_bfloat16_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16
