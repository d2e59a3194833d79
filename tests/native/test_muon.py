"""Compiled code makes the steps of torch's Muon, but for rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptcli.native.muon import NativeMuon
from tests.conftest import errors, skip_without_compiled_code, thread_counts

# Wide, tall and square; of whole tiles, and not.
SHAPES = [(64, 192), (192, 64), (96, 96), (33, 100), (100, 7), (1, 5), (500, 70)]
RATE, DECAY, STEPS = 0.01, 0.1, 3


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    skip_without_compiled_code("muon")


def gradient(shape: tuple[int, int], step: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(step))


def start(shape: tuple[int, int]) -> Tensor:
    return gradient(shape, 100) / 50


def trained(kind: type[torch.optim.Muon]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights after some steps, and their momentum."""
    weights = [torch.nn.Parameter(start(shape)) for shape in SHAPES]
    optimizer = kind(weights, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for weight in weights:
        optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight, requires_grad=False)
    for step in range(STEPS):
        for weight, shape in zip(weights, SHAPES, strict=True):
            weight.grad = gradient(shape, step)
        optimizer.step()  # type: ignore[no-untyped-call]
    return [weight.detach() for weight in weights], [
        optimizer.state[weight]["momentum_buffer"] for weight in weights
    ]


def exact(shape: tuple[int, int]) -> Tensor:
    """Return the weights after these steps, in float64 by the published formulas."""
    weight, momentum = start(shape).double(), torch.zeros(shape, dtype=torch.float64)
    for step in range(STEPS):
        its_gradient = gradient(shape, step).double()
        momentum = 0.95 * momentum + 0.05 * its_gradient
        update = 0.05 * its_gradient + 0.95 * momentum
        update /= update.norm()
        for _ in range(5):
            gram = update @ update.T
            update = 3.4445 * update + (-4.775 * gram + 2.0315 * gram @ gram) @ update
        weight = (1 - RATE * DECAY) * weight - 0.2 * RATE * max(shape) ** 0.5 * update
    return weight


def test_updates_are_as_exact_as_those_of_torch() -> None:
    wanted = [exact(shape) - start(shape) for shape in SHAPES]
    found, by_torch = (
        [weight - start(shape) for weight, shape in zip(trained(kind)[0], SHAPES, strict=True)]
        for kind in (NativeMuon, torch.optim.Muon)
    )
    for error, of_torch in zip(errors(found, wanted), errors(by_torch, wanted), strict=True):
        # In a matrix of few numbers, how they are rounded is luck.
        assert error <= 1.1 * of_torch + 2**-7


def test_momentum_is_that_of_torch() -> None:
    for found, expected in zip(trained(NativeMuon)[1], trained(torch.optim.Muon)[1], strict=True):
        torch.testing.assert_close(found, expected)


def test_the_number_of_threads_changes_no_bit() -> None:
    found = [trained(NativeMuon)[0] for _ in thread_counts(1, 2, 5)]
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_a_scale_of_gradients_is_as_if_they_were_scaled_before() -> None:
    found = []
    for scale in (1.0, 4.0):
        weight = torch.nn.Parameter(start((64, 192)))
        optimizer = NativeMuon([weight], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
        weight.grad = gradient((64, 192), 0) * scale
        optimizer.gradient_scale = 1 / scale
        optimizer.step()
        found.append((weight.detach(), optimizer.state[weight]["momentum_buffer"]))
    assert all(map(torch.equal, *found))


def test_a_gradient_of_0_leaves_a_weight_to_decay_and_one_that_is_missing_leaves_it_alone() -> None:
    weights = [torch.nn.Parameter(torch.ones(40, 50)) for _ in range(2)]
    optimizer = NativeMuon(weights, lr=0.5, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for weight in weights:
        optimizer.state[weight]["momentum_buffer"] = torch.zeros(40, 50)
    weights[0].grad = torch.zeros(40, 50)
    optimizer.step()
    assert torch.equal(weights[0], torch.full((40, 50), 0.75))
    assert torch.equal(weights[1], torch.ones(40, 50))


def test_a_gradient_that_lies_by_columns_is_the_same_gradient() -> None:
    found = []
    for layout in (Tensor.contiguous, lambda one: one.T.contiguous().T):
        weight = torch.nn.Parameter(start((64, 192)))
        optimizer = NativeMuon([weight], lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
        optimizer.state[weight]["momentum_buffer"] = torch.zeros(64, 192)
        weight.grad = layout(gradient((64, 192), 0))
        optimizer.step()
        found.append(weight.detach())
    assert torch.equal(*found)
