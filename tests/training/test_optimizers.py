from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from transformers import GPT2LMHeadModel

from gptcli.config.schema import TrainingSettings
from gptcli.training.optimizers import Optimizers

BLOCK_MATRICES = {
    f"transformer.h.{block}.{matrix}.weight"
    for block in (0, 1)
    for matrix in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}
OptimizerName = Literal["adamw", "muon"]
OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "muon")


def weights_of(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def set_gradients(model: GPT2LMHeadModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_shrinks_matrices_and_leaves_vectors_alone(
    model: GPT2LMHeadModel, optimizer: OptimizerName
) -> None:
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
        parameter.grad = torch.zeros_like(parameter)
    before = weights_of(model)
    Optimizers(model, TrainingSettings(optimizer=optimizer, weight_decay=0.5)).step(0.1)
    for name, weight in model.named_parameters():
        # Without a gradient an update is the decay alone: 1 - 0.1 * 0.5.
        expected = before[name] * (0.95 if weight.ndim == 2 else 1.0)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=0, msg=name)


def test_three_steps_equal_those_of_plain_torch_adamw(model: GPT2LMHeadModel) -> None:
    settings = TrainingSettings(weight_decay=0.2, adam_beta1=0.8, adam_beta2=0.9)
    reference = copy.deepcopy(model)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim == 2], "weight_decay": 0.2},
            {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.9),
        foreach=False,
        fused=False,
    )
    optimizers = Optimizers(model, settings)
    for step, rate in enumerate([1e-3, 5e-4, 2e-4]):
        set_gradients(model, step)
        set_gradients(reference, step)
        optimizers.step(rate)
        for group in plain.param_groups:
            group["lr"] = rate
        plain.step()
    torch.testing.assert_close(weights_of(model), weights_of(reference), rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_may_scale_gradients_whose_norm_is_that_of_all(
    model: GPT2LMHeadModel, optimizer: OptimizerName, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_native:
        monkeypatch.setattr("gptcli.training.optimizers.has_adamw", lambda: False)
        monkeypatch.setattr("gptcli.training.optimizers.has_muon", lambda: False)
    found = []
    for scale in (1.0, 0.25):
        other = copy.deepcopy(model)
        optimizers = Optimizers(other, TrainingSettings(optimizer=optimizer))
        set_gradients(other, 0)
        for parameter in other.parameters():
            assert parameter.grad is not None
            parameter.grad /= scale
        numbers = torch.cat(
            [weight.grad.flatten() for weight in other.parameters() if weight.grad is not None]
        )
        assert optimizers.gradient_norm() == pytest.approx(numbers.double().norm().item(), rel=1e-5)
        optimizers.step(1e-2, scale)
        found.append((weights_of(other), optimizers.state_tensors()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest(model: GPT2LMHeadModel) -> None:
    optimizers = Optimizers(model, TrainingSettings(optimizer="muon"))
    set_gradients(model, 0)
    optimizers.step(1e-3)
    names = dict.fromkeys(name for name, _ in model.named_parameters())
    by_quantity: dict[str, set[str]] = {}
    for key in optimizers.state_tensors():
        name, _, quantity = key.rpartition("/")
        by_quantity.setdefault(quantity, set()).add(name)
    rest = names.keys() - BLOCK_MATRICES
    assert by_quantity == {
        "momentum_buffer": BLOCK_MATRICES,
        "step": rest,
        "exp_avg": rest,
        "exp_avg_sq": rest,
    }


def test_muon_moves_a_matrix_about_as_far_as_adamw_would(model: GPT2LMHeadModel) -> None:
    before = weights_of(model)
    optimizers = Optimizers(model, TrainingSettings(optimizer="muon", weight_decay=0.0))
    set_gradients(model, 0)
    optimizers.step(1e-2)
    for name in BLOCK_MATRICES:
        moved = (weights_of(model)[name] - before[name]).pow(2).mean().sqrt().item()
        # An orthogonal update of a (m, n) matrix, times 0.2 * sqrt(max(m, n)), has this size.
        assert moved == pytest.approx(0.2 * 1e-2, rel=0.3), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_restored_state_gives_the_same_next_step(
    model: GPT2LMHeadModel, optimizer: OptimizerName
) -> None:
    settings = TrainingSettings(optimizer=optimizer)
    optimizers = Optimizers(model, settings)
    for step in (0, 1):
        set_gradients(model, step)
        optimizers.step(1e-2)
    other = copy.deepcopy(model)
    restored = Optimizers(other, settings)
    restored.load_state_tensors(
        {name: tensor.clone() for name, tensor in optimizers.state_tensors().items()}
    )
    for each_model, each in ((model, optimizers), (other, restored)):
        set_gradients(each_model, 2)
        each.step(1e-2)
    torch.testing.assert_close(weights_of(other), weights_of(model), rtol=0, atol=0)
    torch.testing.assert_close(restored.state_tensors(), optimizers.state_tensors(), rtol=0, atol=0)


def test_the_weight_that_embedding_and_head_share_is_counted_once(model: GPT2LMHeadModel) -> None:
    optimizers = Optimizers(model, TrainingSettings())
    set_gradients(model, 0)
    optimizers.step(1e-3)
    state = optimizers.state_tensors()
    assert "transformer.wte.weight/exp_avg" in state
    assert "lm_head.weight/exp_avg" not in state
    moments = sum(value.numel() for key, value in state.items() if key.endswith("/exp_avg"))
    # Vocabulary, positions, two blocks of 12 n^2 + 13 n, the last layer norm; n = 32.
    blocks = 2 * (12 * 32 * 32 + 13 * 32)
    assert moments == model.config.vocab_size * 32 + 32 * 32 + blocks + 2 * 32


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_is_made_before_the_first_step_as_torch_makes_it(
    model: GPT2LMHeadModel, optimizer: OptimizerName
) -> None:
    model.transformer.wpe.requires_grad_(False)
    optimizers = Optimizers(model, TrainingSettings(optimizer=optimizer))
    made = optimizers.state_tensors()
    assert all(not state.any() for state in made.values())
    for one in optimizers._optimizers:
        one.state.clear()
    set_gradients(model, 0)
    model.transformer.wpe.weight.grad = None
    optimizers.step(1e-3)
    lazily = optimizers.state_tensors()
    assert {name: (state.shape, state.dtype) for name, state in made.items()} == {
        name: (state.shape, state.dtype) for name, state in lazily.items()
    }
