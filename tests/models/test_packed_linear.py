"""Products with packed weights are the products, to as many digits as the number format has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gptcli.models.packed_linear import PackedLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU()])
def test_a_packed_product_is_the_product(dtype: torch.dtype, activation: nn.Module | None) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(24, 40, generator=generator)
    bias, inputs = torch.randn(24, generator=generator), torch.randn(9, 40, generator=generator)
    weight, bias, inputs = (tensor.to(dtype) for tensor in (weight, bias, inputs))
    expected = inputs.double() @ weight.double().t() + bias.double()
    if activation is not None:
        expected = activation(expected)
    found = PackedLinear(weight, bias, activation)(inputs)
    # As many digits as the format has.
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
