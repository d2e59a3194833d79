"""Compiled code makes the steps of torch's AdamW, and the norm of gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gptcli.native.adamw import NativeAdamW, gradient_norm
from tests.conftest import skip_without_compiled_code, thread_counts

# Of less than a vector, of several parts for threads, and of none of both.
SHAPES = [(3,), (70, 500), (17, 3), (1,), (40_000,)]
RATE, DECAY, STEPS = 0.01, 0.1, 4
QUANTITIES = ("step", "exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    skip_without_compiled_code("adamw")


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(
    kind: type[torch.optim.AdamW], dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> list[Tensor]:
    """Return weights and state after some steps with gradients that were multiplied with `scale`."""
    weights = [torch.nn.Parameter(random(shape, 100).to(dtype)) for shape in SHAPES]
    groups: list[dict[str, Any]] = [
        {"params": weights[:2]},
        {"params": weights[2:], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.95))
    for step in range(STEPS):
        for weight in weights:
            # The last one does not always learn.
            weight.grad = random(tuple(weight.shape), step).to(dtype) * scale
        weights[-1].grad = None if step % 2 else weights[-1].grad
        if isinstance(optimizer, NativeAdamW):
            optimizer.gradient_scale = 1 / scale
        optimizer.step()
    state = [optimizer.state[weight][name] for weight in weights for name in QUANTITIES]
    return [*(weight.detach() for weight in weights), *state]


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_weights_and_moments_are_those_of_torch_in_float64(scale: float) -> None:
    found, expected = trained(NativeAdamW, scale=scale), trained(torch.optim.AdamW, torch.float64)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-7)


def test_a_first_step_moves_a_weight_by_the_rate_and_lets_it_decay() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0, 2.0, 2.0]))
    weight.grad = torch.tensor([5.0, -0.1, 0.0])
    NativeAdamW([weight], lr=0.5, weight_decay=0.1).step()
    # Without a gradient there is decay alone: 2 (1 - 0.5 * 0.1).
    torch.testing.assert_close(weight.detach(), torch.tensor([1.4, 2.4, 1.9]))


def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    for _ in thread_counts(1, 2, 5):
        norm = gradient_norm([random(shape, 0) for shape in SHAPES])
        found.append([torch.tensor(norm), *trained(NativeAdamW)])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_the_norm_is_that_of_all_numbers_together() -> None:
    assert gradient_norm([torch.full((3, 5), 2.0), torch.tensor([-2.0])]) == 8
    assert gradient_norm([]) == 0
    parts = [random(shape, 0) for shape in SHAPES]
    expected = torch.cat([part.flatten() for part in parts]).double().norm().item()
    assert gradient_norm(parts) == pytest.approx(expected, rel=1e-6)
    across = [part.T for part in parts[1:3]]
    assert gradient_norm(across) == pytest.approx(gradient_norm(parts[1:3]), rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 20_000, 39_999])
def test_a_norm_with_what_is_no_number_is_none(value: float, place: int) -> None:
    part = torch.zeros(40_000)
    part[place] = value
    assert not math.isfinite(gradient_norm([torch.ones(5), part]))


def test_a_gradient_that_lies_by_columns_is_the_same_gradient() -> None:
    found = []
    for layout in (Tensor.contiguous, lambda one: one.T.contiguous().T):
        weight = torch.nn.Parameter(random((70, 50), 0))
        weight.grad = layout(random((70, 50), 1))
        NativeAdamW([weight], lr=RATE).step()
        found.append(weight.detach())
    assert torch.equal(*found)
