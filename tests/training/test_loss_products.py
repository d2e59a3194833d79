"""The loss of next-token prediction whose products are made by compiled code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from gptcli.data.batches import IGNORED
from gptcli.native import product as native_product
from gptcli.training import loss as loss_module
from gptcli.training.loss import summed_head_loss
from tests.conftest import errors, skip_without_native_products
from tests.training.test_loss import plain_loss


@pytest.fixture(scope="module", autouse=True)
def _products() -> None:
    skip_without_native_products()


# Whole rows and slices of the vocabulary, and not; of one part, and of several.
@pytest.mark.parametrize("rows", [1, 32, 45, 1000])
@pytest.mark.parametrize("words", [40, 64, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("learns", ["both", "hidden", "weight", "nothing"])
@pytest.mark.parametrize("gradient", [0.25, 1.0], ids=["as expected", "another gradient"])
def test_products_by_compiled_code_are_as_exact_as_those_of_torch(
    gradient: float,
    learns: str,
    dtype: torch.dtype,
    words: int,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(loss_module.ROWS, "cpu", rows)
    monkeypatch.setattr(loss_module, "WORDS_AT_ONCE", words)
    torch.manual_seed(0)
    targets = torch.randint(0, 170, (3, 50))
    targets[0, 2:20] = IGNORED
    hidden, weight = torch.randn(3, 50, 48).to(dtype), (torch.randn(170, 48) / 4).to(dtype)
    learning = [learns in ("both", one) for one in ("hidden", "weight")]

    def found(function: Callable[..., Tensor], *numbers: Tensor) -> list[Tensor]:
        """Return the loss, and the gradients that are wanted."""
        inputs = [
            one.clone().requires_grad_(learns) for one, learns in zip(numbers, learning, strict=True)
        ]
        loss = function(*inputs, targets, 0.1)
        wanted = [one for one in inputs if one.requires_grad]
        return [loss.detach(), *(torch.autograd.grad(loss * 0.25, wanted) if wanted else ())]

    exact = found(plain_loss, hidden.double(), weight.double())
    results = []
    for is_faster in (True, False):
        monkeypatch.setattr(native_product, "is_faster", lambda _, answer=is_faster: answer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(found(partial(summed_head_loss, gradient=gradient), hidden, weight))
    native, by_torch = results
    assert [one.dtype for one in native] == [one.dtype for one in by_torch]
    for error, of_torch in zip(errors(native, exact), errors(by_torch, exact), strict=True):
        assert error <= 1.05 * of_torch + 1e-4


@pytest.mark.parametrize("case", ["weight by columns", "hidden by columns", "hidden", "weight", "both"])
def test_what_compiled_code_does_not_take_is_torch_s(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_product, "LEAST_WEIGHTS", 0)
    hidden, weight = torch.randn(2, 8, 16), torch.randn(50, 16)
    if case == "weight by columns":
        weight = weight.T.contiguous().T
    elif case == "hidden by columns":
        hidden = hidden.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    if case in ("hidden", "both"):
        hidden = hidden.half()
    if case in ("weight", "both"):
        weight = weight.double()
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    targets = torch.zeros(2, 8, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = summed_head_loss(hidden, weight, targets)
    exact = plain_loss(hidden.detach().double(), weight.detach().double(), targets, 0.0)
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert [one.dtype for one in torch.autograd.grad(loss, inputs)] == [one.dtype for one in inputs]
