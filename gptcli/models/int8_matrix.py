"""Products with a matrix of bytes, for rows of float32: torch's kernels for quantized models on CPUs.

Weights have a scale for each output. Each row of inputs becomes bytes when it comes, with a scale and a
zero of its own, so that no row depends on those beside it. Sums are exact, in 32 bits:

    x w^T  =  scale_x scale_w (x_bytes w_bytes^T - zero_x sum(w_bytes))

There are two kernels, each with a layout of its own: FBGEMM's is the faster for one row, oneDNN's for
many, where it has the processor's matrix units.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor

_WEIGHT_LEVELS, _INPUT_LEVELS = 127, 255
# Smaller scales are not told apart from this one by FBGEMM.
_SMALLEST_SCALE = 6.1e-5
_NOTHING = 1e-30
# The layout for many rows is made when so many have come: a short text alone does without.
_MANY_ROWS = 256


def to_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (outputs, inputs) int8 of the same, and (outputs,) float32 that they are scaled by."""
    scales = weight.abs().amax(1).float().clamp_min_(_NOTHING).div_(_WEIGHT_LEVELS)
    return (weight / scales[:, None]).round_().to(torch.int8).contiguous(), scales


class Int8Matrix:
    """A matrix of bytes."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: (outputs, inputs), of any floating-point type, on the CPU. bias: (outputs,)."""
        self._bias = None if bias is None else bias.detach().float()
        levels, scales = to_bytes(weight.detach())
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            # That torch will drop its quantized tensors: multiplies_int8 looks whether they are there.
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(levels, scales.double(), zeros, 0)
            self._for_one_row = torch.ops.quantized.linear_prepack(quantized, self._bias)
        self._levels: Tensor | None = levels
        self._for_many_rows: Tensor | None = None
        self._scales, self._zeros = scales, zeros.int()
        self._sums = levels.sum(1, dtype=torch.int32) * scales
        self._rows_seen = 0

    def product(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) float32 of (n, inputs) float32, the bias added."""
        if len(inputs) == 1:
            outputs: Tensor = torch.ops.quantized.linear_dynamic(inputs, self._for_one_row, False)
            return outputs
        low, high = torch.aminmax(inputs, dim=-1, keepdim=True)
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = (high - low).div_(_INPUT_LEVELS).clamp_min_(_NOTHING)
        zero = (low / scale).round_().neg_()
        scale.clamp_min_(_SMALLEST_SCALE)
        outputs = self._product_of_levels(torch.addcdiv(zero, inputs, scale))
        outputs = torch.addcmul(outputs, zero, self._sums, value=-1)
        return outputs.mul_(scale) if self._bias is None else torch.addcmul(self._bias, outputs, scale)

    def _product_of_levels(self, levels: Tensor) -> Tensor:
        """Return (n, outputs) of whole numbers from 0 to 255, which the inputs are rounded to."""
        self._rows_seen += len(levels)
        if self._levels is not None and self._rows_seen > _MANY_ROWS:
            self._for_many_rows = torch.ops.onednn.qlinear_prepack(self._levels, None)
            self._levels = None
        if self._for_many_rows is None:
            outputs: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                levels, 1.0, 0, self._for_one_row
            )
            # The layout has the bias in it, which the scales of the inputs are not for.
            return outputs if self._bias is None else outputs.sub_(self._bias)
        many: Any = torch.ops.onednn.qlinear_pointwise
        return cast(
            Tensor,
            many(
                *(levels.round_().to(torch.uint8), 1.0, 0),
                *(self._for_many_rows, self._scales, self._zeros, None),
                *(1.0, 0, torch.float32, "none", [], ""),
            ),
        )
