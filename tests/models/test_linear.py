"""GPT-2's layers multiply by compiled code as exactly as by torch, and elsewhere as before."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from gptcli.models import linear
from gptcli.models.adapters import without_adapters
from gptcli.models.linear import NativeConv1D, NativeMLP, use_native_products
from gptcli.models.saving import save_model
from gptcli.native import product as native_product
from tests.conftest import errors, skip_without_native_products
from tests.models.test_adapters import with_adapters

IDS = torch.arange(60).reshape(3, 20) % 40


@pytest.fixture(autouse=True)
def _products(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_native_products()
    monkeypatch.setattr(native_product, "LEAST_WEIGHTS", 0)


def in_bfloat16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def native(module: Any) -> Any:
    """Return a copy that multiplies by compiled code."""
    changed = copy.deepcopy(module)
    use_native_products(changed)
    assert any(type(part) is NativeConv1D for part in changed.modules())
    return changed


def plain_layer(inputs: int, outputs: int) -> Conv1D:
    torch.manual_seed(0)
    layer = Conv1D(outputs, inputs)
    torch.nn.init.normal_(layer.bias)
    return layer


def with_gradients(
    layer: Conv1D, inputs: Tensor, gradient: Tensor, forward: Callable[..., Tensor] | None = None
) -> list[Tensor]:
    """Return the outputs, and the gradients of inputs, weight and bias."""
    inputs = inputs.detach().requires_grad_()
    found = (forward or layer)(inputs)
    wanted = (inputs, layer.weight, layer.bias)
    return [found.detach(), *torch.autograd.grad(found, wanted, gradient.to(found.dtype))]


SHAPES = [(1, 1, 32, 96), (1, 1, 5, 3), (2, 33, 48, 144), (3, 100, 96, 40), (1, 600, 64, 10)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_are_as_exact_as_those_of_torch(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    batch, tokens, width, outputs = shape
    layer = plain_layer(width, outputs)
    inputs = torch.randn(batch, tokens, width).to(dtype)
    gradient = torch.randn(batch, tokens, outputs).bfloat16()
    exact = with_gradients(copy.deepcopy(layer).double(), inputs.double(), gradient)
    with in_bfloat16():
        by_torch = with_gradients(layer, inputs, gradient)
        found = with_gradients(native(layer), inputs, gradient)
    assert [(one.dtype, one.shape) for one in found] == [(one.dtype, one.shape) for one in by_torch]
    for error, of_torch in zip(errors(found, exact), errors(by_torch, exact), strict=True):
        assert error <= 1.05 * of_torch + 1e-4
    # Not rounded to bfloat16.
    assert max(errors(found[3:], exact[3:])) <= 1e-6


@pytest.mark.parametrize("learning", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_what_is_frozen_gets_no_gradient_and_all_else_the_same(learning: tuple[bool, ...]) -> None:
    layer = native(plain_layer(48, 40))
    inputs, gradient = torch.randn(2, 9, 48), torch.randn(2, 9, 40).bfloat16()
    with in_bfloat16():
        _, *expected = with_gradients(layer, inputs, gradient)
        for tensor, learns in zip((inputs, layer.weight, layer.bias), learning, strict=True):
            tensor.requires_grad_(learns)
        torch.autograd.backward(layer(inputs), gradient)
    for tensor, learns, one in zip((inputs, layer.weight, layer.bias), learning, expected, strict=True):
        if learns:
            assert tensor.grad is not None
            assert torch.equal(tensor.grad, one)
        else:
            assert tensor.grad is None


def test_inputs_and_gradients_may_lie_anywhere() -> None:
    layer = native(plain_layer(48, 40))
    inputs, gradient = torch.randn(3, 20, 48), torch.randn(3, 1, 1).bfloat16().expand(3, 20, 40)
    with in_bfloat16():
        expected = with_gradients(layer, inputs, gradient.contiguous())
        for order in itertools.permutations(range(3)):
            back = torch.argsort(torch.tensor(order)).tolist()
            apart = inputs.permute(order).contiguous().permute(back)
            assert all(map(torch.equal, with_gradients(layer, apart, gradient), expected))
            spread = gradient.permute(order).contiguous().permute(back)
            assert all(map(torch.equal, with_gradients(layer, inputs, spread), expected))


@pytest.mark.parametrize(
    ("autocast", "dtype"),
    [
        (None, torch.float32),
        (None, torch.bfloat16),
        (None, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float16),
    ],
    ids=str,
)
def test_what_it_is_not_for_is_what_it_was(autocast: torch.dtype | None, dtype: torch.dtype) -> None:
    layer = plain_layer(48, 40).to(dtype)
    inputs, gradient = torch.randn(2, 30, 48).to(dtype), torch.randn(2, 30, 40).to(dtype)
    with nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
        expected = with_gradients(layer, inputs, gradient)
        found = with_gradients(native(layer), inputs, gradient)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_compilers_change_nothing() -> None:
    layer = native(plain_layer(48, 40))
    inputs, gradient = torch.randn(2, 30, 48), torch.randn(2, 30, 40).bfloat16()
    with in_bfloat16():
        expected = with_gradients(layer, inputs, gradient)
        compiled = torch.compile(layer.forward, fullgraph=True, dynamic=False)
        found = with_gradients(layer, inputs, gradient, compiled)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_compilers_may_take_each_product_as_one_operator() -> None:
    inputs, gradient = torch.randn(9, 48).bfloat16(), torch.randn(9, 40).bfloat16()
    layer = plain_layer(48, 40)
    arguments = (inputs.clone().requires_grad_(), layer.weight, layer.bias)
    torch.library.opcheck(linear._linear, arguments)
    torch.library.opcheck(linear._gradient_of_inputs, (gradient, layer.weight.detach()))
    torch.library.opcheck(linear._gradient_of_weight, (gradient, inputs))


def gradients(model: Any, *, is_exact: bool = False) -> dict[str, Tensor]:
    """Return those of a step's loss, by name."""
    model = copy.deepcopy(model)
    torch.manual_seed(3)  # The same numbers are dropped each time.
    with nullcontext() if is_exact else in_bfloat16():
        loss = (model.double() if is_exact else model)(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def assert_as_exact(model: Any, with_native: Any) -> list[str]:
    """Compare the gradients of both with those in float64; return which weights have any."""
    exact, by_torch, found = gradients(model, is_exact=True), gradients(model), gradients(with_native)
    assert found.keys() == by_torch.keys() == exact.keys()
    expected = list(exact.values())
    pairs = zip(
        errors(list(found.values()), expected), errors(list(by_torch.values()), expected), strict=True
    )
    assert all(error <= 1.1 * of_torch + 1e-3 for error, of_torch in pairs)
    return list(found)


def test_a_model_learns_as_exactly_as_with_torch(model: GPT2LMHeadModel) -> None:
    learning = assert_as_exact(model.eval(), native(model))
    assert learning == [name for name, _ in model.named_parameters()]


def test_adapters_learn_beside_frozen_matrices(model: GPT2LMHeadModel) -> None:
    pytest.importorskip("peft")
    adapted = with_adapters(model, targets=["c_attn", "c_proj", "c_fc"])
    with_native = native(adapted)
    assert type(with_native.transformer.h[0].attn.c_attn.base_layer) is NativeConv1D
    learning = assert_as_exact(adapted, with_native)
    assert learning == [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert learning
    merged = without_adapters(with_native)
    torch.testing.assert_close(merged(IDS).logits, adapted(IDS).logits, rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(model: GPT2LMHeadModel) -> None:
    with_native = native(model).train()
    expected = gradients(with_native)
    with_native.activation_checkpointing_enable({"use_reentrant": False})
    found = gradients(with_native)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], rtol=0, atol=0, msg=name)


def test_a_saved_model_does_not_know_of_it(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with_native = native(model)
    assert list(with_native.state_dict()) == list(model.state_dict())
    for one, folder in ((model, "plain"), (with_native, "native")):
        save_model(one, tokenizer, tmp_path / folder)
    names = sorted(file.name for file in (tmp_path / "plain").iterdir())
    assert "model.safetensors" in names
    assert names == sorted(file.name for file in (tmp_path / "native").iterdir())
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "native" / name).read_bytes()


def test_no_tokens_give_gradients_of_0() -> None:
    layer = native(plain_layer(48, 40))
    with in_bfloat16():
        found = with_gradients(layer, torch.empty(0, 3, 48), torch.empty(0, 3, 40))
    assert found[2].shape == (48, 40)
    assert not found[2].any()


def test_one_token_without_a_batch_and_a_bias_in_bfloat16_are_taken_as_by_torch() -> None:
    layer, inputs = plain_layer(48, 40), torch.randn(48)
    with in_bfloat16():
        torch.testing.assert_close(native(layer)(inputs), layer(inputs), rtol=0.02, atol=0.02)
        layer.bias = torch.nn.Parameter(layer.bias.bfloat16())
        assert torch.equal(native(layer)(inputs[None]), layer(inputs[None]))


def test_small_layers_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_product, "LEAST_WEIGHTS", 48 * 40)
    small, large = plain_layer(47, 40), plain_layer(48, 40)
    use_native_products(torch.nn.ModuleList([small, large]))
    assert (type(small), type(large)) == (Conv1D, NativeConv1D)


def plain_mlp(width: int, inner: int, activation: torch.nn.Module, dropout: float = 0.0) -> GPT2MLP:
    torch.manual_seed(0)
    mlp = GPT2MLP(inner, GPT2Config(n_embd=width, resid_pdrop=dropout))
    mlp.act = activation
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mlp


def mlp_with_gradients(mlp: GPT2MLP, inputs: Tensor, gradient: Tensor) -> list[Tensor]:
    """Return the outputs, and the gradients of inputs and parameters."""
    inputs = inputs.detach().requires_grad_()
    found = mlp(inputs)
    wanted = [one for one in (inputs, *mlp.parameters()) if one.requires_grad]
    return [found.detach(), *torch.autograd.grad(found, wanted, gradient.to(found.dtype))]


@pytest.mark.parametrize(
    ("shape", "width", "inner"), [((1, 1), 32, 96), ((2, 37), 50, 130), ((600,), 64, 256)]
)
def test_both_layers_at_once_are_as_exact_as_those_of_torch(
    shape: tuple[int, ...], width: int, inner: int
) -> None:
    mlp = plain_mlp(width, inner, torch.nn.GELU("tanh"))
    fused = native(mlp)
    assert type(fused) is NativeMLP
    inputs, gradient = torch.randn(*shape, width), torch.randn(*shape, width).bfloat16()
    exact = mlp_with_gradients(copy.deepcopy(mlp).double(), inputs.double(), gradient)
    with in_bfloat16():
        found, by_torch = (mlp_with_gradients(one, inputs, gradient) for one in (fused, mlp))
    for error, of_torch in zip(errors(found, exact), errors(by_torch, exact), strict=True):
        assert error <= 1.05 * of_torch + 1e-4


def test_frozen_layers_give_a_gradient_to_their_inputs_alone() -> None:
    mlp = native(plain_mlp(32, 64, torch.nn.GELU("tanh")))
    inputs, gradient = torch.randn(5, 32), torch.randn(5, 32)
    with in_bfloat16():
        _, whole, *_ = mlp_with_gradients(mlp, inputs, gradient)
        mlp.requires_grad_(False)
        _, alone = mlp_with_gradients(mlp, inputs, gradient)
    assert torch.equal(whole, alone)


def test_both_layers_at_once_drop_as_many_numbers_and_are_torch_s_without_autocast() -> None:
    mlp = plain_mlp(32, 64, torch.nn.GELU("tanh"), dropout=0.25)
    fused, inputs = native(mlp), torch.randn(400, 32)
    with in_bfloat16():
        dropped = (fused(inputs) == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.03)  # 12,800 draws: eight standard deviations.
    assert torch.equal(fused.eval()(inputs), mlp.eval()(inputs))


def test_other_activation_functions_stay_between_the_layers() -> None:
    for activation in (torch.nn.GELU(), torch.nn.ReLU()):
        layers = native(plain_mlp(32, 64, activation))
        assert type(layers) is GPT2MLP
        assert type(layers.c_fc) is type(layers.c_proj) is NativeConv1D
