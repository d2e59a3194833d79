from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.data.batches import IGNORED
from gptcli.native.kernels import load_kernels
from gptcli.training import loss as loss_module
from gptcli.training.loss import summed_head_loss


@pytest.fixture(scope="module", autouse=True, params=["compiled code", "torch"])
def _side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let each of both compute the loss: without a compiler, torch does."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("empty")))
            patch.setenv("PATH", "")
            patch.delenv("CXX", raising=False)
            load_kernels.cache_clear()
            assert load_kernels("loss") is None
        elif load_kernels("loss") is None:
            pytest.skip("no compiled code here")
        yield
    load_kernels.cache_clear()


# Probabilities of three tokens at each of 2 x 2 positions: with the identity as head, hidden states are
# the scores.
SCORES = torch.tensor(
    [[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [[0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]]]
).log()


@pytest.mark.parametrize(
    ("targets", "probabilities"),
    [
        ([[0, 1], [2, 0]], [0.5, 0.2, 0.1, 1 / 3]),
        ([[0, IGNORED], [2, IGNORED]], [0.5, 0.1]),
        ([[IGNORED, IGNORED], [IGNORED, IGNORED]], []),
    ],
)
def test_the_loss_is_the_sum_of_minus_log_probabilities_of_the_targets_that_are_scored(
    targets: list[list[int]], probabilities: list[float]
) -> None:
    loss = summed_head_loss(SCORES, torch.eye(3), torch.tensor(targets))
    assert loss.item() == pytest.approx(sum(-math.log(p) for p in probabilities), abs=1e-6)


def test_scores_of_low_precision_are_summed_in_float32() -> None:
    # About 4500, where neighbours in bfloat16 are 32 apart.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = summed_head_loss(
            torch.zeros(1, 4096, 3), torch.eye(3), torch.zeros(1, 4096, dtype=torch.int64)
        )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * math.log(3), rel=1e-5)


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the same by torch alone."""
    return F.cross_entropy(
        F.linear(hidden, weight).flatten(0, 1).to(torch.promote_types(hidden.dtype, torch.float32)),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=smoothing,
    )


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("words", [4, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("learns", ["both", "hidden", "weight"])
def test_loss_and_gradients_equal_those_of_torch_on_all_scores_at_once(
    rows: int, words: int, smoothing: float, learns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss_module.ROWS, "cpu", rows)
    monkeypatch.setattr(loss_module, "WORDS_AT_ONCE", words)
    monkeypatch.setattr(loss_module, "NUMBERS_AT_ONCE", 3 * 11)
    torch.manual_seed(0)
    targets = torch.randint(0, 11, (3, 7))
    targets[0, 2:5] = IGNORED
    results: list[list[Tensor | None]] = []
    for function in (summed_head_loss, plain_loss):
        torch.manual_seed(1)
        hidden = torch.randn(3, 7, 8).requires_grad_(learns != "weight")
        weight = torch.randn(11, 8).requires_grad_(learns != "hidden")
        loss = function(hidden, weight, targets, smoothing)
        torch.autograd.backward(loss * 0.25)
        results.append([loss.detach(), hidden.grad, weight.grad])
    for found, expected in zip(*results, strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_in_bfloat16_are_those_of_torch_with_autocast_but_for_rounding() -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, 50, (4, 64))
    gradients = []
    for function in (summed_head_loss, plain_loss):
        torch.manual_seed(1)
        hidden, weight = torch.randn(4, 64, 32), torch.randn(50, 32)
        hidden.requires_grad_()
        weight.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = function(hidden, weight, targets, 0.0)
        torch.autograd.backward(loss)
        assert hidden.grad is not None
        assert weight.grad is not None
        gradients.append((hidden.grad, weight.grad))
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()


def test_without_gradients_the_loss_is_the_same() -> None:
    targets = torch.tensor([[0, 1], [2, 0]])
    weight = torch.eye(3).requires_grad_()
    with torch.inference_mode():
        loss = summed_head_loss(SCORES, weight, targets)
    assert loss.item() == pytest.approx(summed_head_loss(SCORES, weight, targets).item())
