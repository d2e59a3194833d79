"""What the head of a decoder is made of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptcli.models.decoding_forward import head_weight


def model_with_head(weight: torch.Tensor) -> Any:
    return SimpleNamespace(lm_head=SimpleNamespace(weight=weight))


# The first are fewer rows than are taken at once, the others no multiple of it.
@pytest.mark.parametrize("rows", [3, 1300])
@pytest.mark.parametrize(
    ("dtype", "is_int8"), [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)]
)
def test_a_head_whose_numbers_are_rounded_has_no_mean(
    rows: int, dtype: torch.dtype, is_int8: bool
) -> None:
    weight = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0)) + 10
    expected = weight.double() - weight.double().mean(0)
    found = head_weight(model_with_head(weight), dtype, is_int8=is_int8)
    assert found.dtype == dtype
    # Half a step of the number format, relative to a number.
    step = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(found.double(), expected, rtol=1.01 * step, atol=1e-4)


def test_a_head_in_float32_stays_as_it_is() -> None:
    weight = torch.arange(12.0).view(4, 3)
    assert torch.equal(head_weight(model_with_head(weight), torch.float32), weight)
