"""Compiled code computes the cross-entropy and its gradient as float64 does, but for rounding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.native.loss import NativeLoss
from tests.conftest import skip_without_compiled_code, thread_counts

# Relative distance between neighbours, halved by rounding to the nearest; and for sums in float32.
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 4e-6}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    skip_without_compiled_code("loss")


def native(dtype: torch.dtype) -> NativeLoss:
    found = NativeLoss.of("cpu", dtype)
    assert found is not None
    return found


def some_scores(rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(5)
    scores = (4 * torch.randn(rows, vocabulary, generator=numbers)).to(dtype)
    return scores, torch.randint(vocabulary, (rows,), generator=numbers)


def parted(scores: Tensor, widths: list[int]) -> list[Tensor]:
    """Return slices whose rows lie apart, each by itself."""
    parts = torch.split(scores, widths, 1)
    return [F.pad(part, (0, 5), value=math.nan)[:, : part.shape[1]] for part in parts]


@DTYPES
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    "widths",
    [
        [1],
        [7],  # Less than a vector,
        [16],  # just one,
        [15, 16, 17],  # and not always a whole number of them.
        [64, 1, 130],
        [8192, 1105],
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 6])
def test_loss_and_gradient_are_those_of_float64(
    rows: int, widths: list[int], smoothing: float, dtype: torch.dtype
) -> None:
    scores, chosen = some_scores(rows, sum(widths), dtype)
    exact = scores.double().requires_grad_()
    expected = F.cross_entropy(exact, chosen, reduction="sum", label_smoothing=smoothing)
    torch.autograd.backward(expected)
    assert exact.grad is not None
    slices = parted(scores, widths)
    found = native(dtype).summed(slices, chosen, smoothing, is_learning=True)
    torch.testing.assert_close(found, expected.detach(), rtol=4e-6, atol=4e-6)
    # A probability less the target, each to float32's rounding; and then the difference rounded.
    torch.testing.assert_close(
        torch.cat(slices, 1).double(), exact.grad, rtol=ROUNDING[dtype], atol=2e-7 + 2e-6 * smoothing
    )


@DTYPES
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype) -> None:
    scores, chosen = some_scores(37, 999, dtype)
    results = []
    for _ in thread_counts(1, 2, 5):
        slices = parted(scores, [500, 499])
        loss = native(dtype).summed(slices, chosen, 0.1, is_learning=True)
        results.append((loss, *slices))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@DTYPES
def test_the_gradient_is_multiplied(dtype: torch.dtype) -> None:
    scores, chosen = some_scores(5, 40, dtype)
    plain, quarter = parted(scores, [30, 10]), parted(scores, [30, 10])
    loss = native(dtype).summed(plain, chosen, 0.1, is_learning=True)
    assert loss == native(dtype).summed(quarter, chosen, 0.1, is_learning=True, factor=0.25)
    # A power of two: nothing is rounded otherwise.
    assert all(torch.equal(one / 4, other) for one, other in zip(plain, quarter, strict=True))


@DTYPES
def test_without_learning_the_loss_is_the_same_and_the_scores_stay(dtype: torch.dtype) -> None:
    scores, chosen = some_scores(3, 40, dtype)
    slices = parted(scores, [40])
    loss = native(dtype).summed(slices, chosen, 0.0, is_learning=False)
    assert torch.equal(slices[0], scores)
    assert loss == native(dtype).summed(slices, chosen, 0.0, is_learning=True)


@DTYPES
@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({20: math.nan}, 1),
        ({33: math.nan}, 33),
        ({0: math.nan, 1: 1000.0}, 1),
        ({20: math.inf}, 1),
        ({20: math.inf}, 20),
        ({20: -math.inf}, 20),  # Infinitely unlikely.
        (dict.fromkeys(range(35), -math.inf), 1),
    ],
    ids=str,
)
def test_scores_without_a_loss_give_one_that_is_not_finite(
    changes: dict[int, float], chosen: int, dtype: torch.dtype
) -> None:
    scores = torch.zeros(2, 35, dtype=dtype)
    for place, score in changes.items():
        scores[1, place] = score
    targets = torch.tensor([1, chosen])
    assert not F.cross_entropy(scores.double(), targets).isfinite()
    loss = native(dtype).summed(parted(scores, [17, 18]), targets, 0.0, is_learning=True)
    assert not loss.isfinite()


@DTYPES
def test_what_is_impossible_is_left_out(dtype: torch.dtype) -> None:
    scores = torch.full((1, 40), -math.inf, dtype=dtype)
    scores[0, [3, 25]] = torch.tensor([1000.0, 1000.0], dtype=dtype)
    slices = parted(scores, [20, 20])
    loss = native(dtype).summed(slices, torch.tensor([25]), 0.0, is_learning=True)
    assert loss.item() == pytest.approx(math.log(2))
    expected = torch.zeros(1, 40)
    expected[0, [3, 25]] = torch.tensor([0.5, -0.5])
    torch.testing.assert_close(torch.cat(slices, 1).float(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("target", [-1, 4])
def test_a_target_out_of_the_vocabulary_is_refused(target: int) -> None:
    with pytest.raises(IndexError, match=r"a target is not in 0\.\.3"):
        native(torch.float32).summed([torch.zeros(1, 4)], torch.tensor([target]), 0.0, is_learning=True)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 129)], ids=str)
def test_numbers_of_bfloat16_are_added_in_float32(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    numbers, sums = torch.randn(shape).bfloat16(), torch.randn(shape)
    expected = sums + numbers.float()
    native(torch.bfloat16).add(numbers, sums)
    assert torch.equal(sums, expected)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float16), ("cuda", torch.bfloat16)])
def test_it_is_for_a_cpu_and_two_types(device: str, dtype: torch.dtype) -> None:
    assert NativeLoss.of(device, dtype) is None
