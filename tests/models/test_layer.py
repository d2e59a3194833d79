"""GPT-2's layers are computed by compiled code as exactly as by torch, and elsewhere as before."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from gptcli.models.activation import fuse_activation
from gptcli.models.attention import use_plain_attention
from gptcli.models.layer import NativeBlock, has_native_layers, use_fast_layers
from gptcli.models.saving import save_model
from tests.conftest import errors, skip_without_native_products, thread_counts
from tests.models.test_adapters import with_adapters
from tests.models.test_linear import in_bfloat16

IDS = torch.arange(60).reshape(3, 20) % 40


@pytest.fixture(autouse=True)
def _layers() -> None:
    skip_without_native_products()


def new_model(width: int = 64, heads: int = 2, inner: int | None = None, **others: Any) -> Any:
    torch.manual_seed(0)
    options = {"activation_function": "gelu_pytorch_tanh", "n_positions": 700, **others}
    for name in ("resid_pdrop", "attn_pdrop", "embd_pdrop"):
        options.setdefault(name, 0.0)
    config = GPT2Config(
        n_layer=1,
        n_head=heads,
        n_embd=width,
        n_inner=inner,
        vocab_size=40,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )
    model = GPT2LMHeadModel(config)
    for weight in model.parameters():
        weight.data += torch.randn_like(weight) / 20  # Biases and layer norms count.
    fuse_activation(model)
    use_plain_attention(model)
    return model


def native(model: Any) -> Any:
    """Return a copy whose layers are compiled code's."""
    changed = copy.deepcopy(model)
    use_fast_layers(changed, "bf16", is_compiled=False)
    assert all(type(block) is NativeBlock for block in changed.transformer.h)
    return changed


def with_gradients(block: Any, inputs: Tensor, gradient: Tensor, *arguments: Any) -> list[Tensor]:
    """Return the outputs, and the gradients of inputs and of what learns."""
    inputs = inputs.detach().requires_grad_()
    outputs = block(inputs, *arguments)
    wanted = [inputs, *(weight for weight in block.parameters() if weight.requires_grad)]
    return [outputs.detach(), *torch.autograd.grad(outputs, wanted, gradient.to(outputs.dtype))]


def layers(width: int = 64, heads: int = 2, inner: int | None = None) -> tuple[Any, Any]:
    """Return a layer by torch, and the same by compiled code."""
    model = new_model(width, heads, inner)
    return model.transformer.h[0], native(model).transformer.h[0]


# Rows that do not fill a block, heads of several sizes, and rows 2 and 8 KiB apart.
SHAPES = [
    (1, 1, 32, 1, None),
    (3, 33, 64, 2, None),
    (1, 100, 128, 4, 96),
    (2, 65, 256, 2, 1024),
    (4, 64, 1024, 16, None),
    (2, 600, 384, 6, None),
]


@pytest.mark.parametrize(("batch", "tokens", "width", "heads", "inner"), SHAPES)
def test_outputs_and_gradients_are_as_exact_as_those_of_torch(
    batch: int, tokens: int, width: int, heads: int, inner: int | None
) -> None:
    plain, compiled = layers(width, heads, inner)
    inputs, gradient = torch.randn(2, batch, tokens, width).unbind()
    exact = with_gradients(copy.deepcopy(plain).double(), inputs.double(), gradient)
    with in_bfloat16():
        by_torch = with_gradients(plain, inputs, gradient)
        found = with_gradients(compiled, inputs, gradient)
    assert [(one.dtype, one.shape) for one in found] == [(one.dtype, one.shape) for one in by_torch]
    both = list(zip(errors(found, exact), errors(by_torch, exact), strict=True))
    # How far rounding takes the few numbers of a layer norm is a matter of luck, that of all is not.
    assert all(error <= 1.3 * of_torch + 1e-4 for error, of_torch in both)
    assert sum(error for error, _ in both) <= sum(of_torch for _, of_torch in both)


def test_how_many_threads_there_are_changes_no_bit() -> None:
    _, compiled = layers(96, 3)
    inputs, gradient = torch.randn(2, 5, 77, 96).unbind()
    with in_bfloat16():
        found = [with_gradients(compiled, inputs, gradient) for _ in thread_counts(1, 2, 3)]
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_what_other_sizes_left_behind_changes_nothing() -> None:
    _, compiled = layers()
    inputs, gradient = torch.randn(2, 3, 20, 64).unbind()
    others = torch.full((2, 5, 40, 64), torch.inf)
    with in_bfloat16():
        expected = with_gradients(compiled, inputs, gradient)
        with_gradients(compiled, *others)
        assert all(map(torch.equal, with_gradients(compiled, inputs, gradient), expected))


def test_inputs_and_gradients_may_lie_anywhere() -> None:
    _, compiled = layers()
    inputs, gradient = torch.randn(2, 3, 20, 64).unbind()
    with in_bfloat16():
        expected = with_gradients(compiled, inputs, gradient)
        apart = [part.permute(2, 0, 1).contiguous().permute(1, 2, 0) for part in (inputs, gradient)]
        assert all(map(torch.equal, with_gradients(compiled, *apart), expected))
        spread = gradient[:, :1].expand_as(gradient)
        expected = with_gradients(compiled, inputs, spread.contiguous())
        assert all(map(torch.equal, with_gradients(compiled, inputs, spread), expected))
        in_low = inputs.bfloat16()
        expected = with_gradients(compiled, in_low.float(), gradient)
        found = with_gradients(compiled, in_low, gradient)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1].bfloat16())


@pytest.mark.parametrize(
    ("autocast", "dtype"),
    [
        (None, torch.float32),
        (torch.float16, torch.float32),
        (None, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
def test_what_it_is_not_for_is_what_it_was(autocast: torch.dtype | None, dtype: torch.dtype) -> None:
    plain, compiled = (block.to(dtype) for block in layers())
    inputs, gradient = torch.randn(2, 2, 30, 64).to(dtype).unbind()
    with nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast):
        expected = with_gradients(plain, inputs, gradient)
        assert all(map(torch.equal, with_gradients(compiled, inputs, gradient), expected))


def test_masks_and_earlier_tokens_are_left_to_torch() -> None:
    plain, compiled = layers()
    inputs, gradient = torch.randn(2, 2, 30, 64).unbind()
    mask = torch.ones(2, 1, 30, 30).tril().bool()
    mask[:, :, 5:, 2:4] = False
    with in_bfloat16():
        expected = with_gradients(plain, inputs, gradient, None, mask)
        assert all(map(torch.equal, with_gradients(compiled, inputs, gradient, None, mask), expected))
        assert not torch.allclose(expected[0], compiled(inputs), atol=0.1)
        found = []
        for block in (plain, compiled):
            cache = DynamicCache()
            block(inputs, cache)
            found.append(block(inputs[:, :1], cache))
        assert torch.equal(*found)


def loss_and_gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    with in_bfloat16():
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), **gradients}


def test_a_model_learns_as_exactly_as_with_torch() -> None:
    plain = new_model()
    exact = copy.deepcopy(plain).double()
    loss = exact(input_ids=IDS, labels=IDS).loss
    loss.backward()
    expected = {"loss": loss.detach(), **{name: one.grad for name, one in exact.named_parameters()}}
    by_torch, found = loss_and_gradients(plain), loss_and_gradients(native(plain))
    assert found.keys() == by_torch.keys() == expected.keys()
    of_exact = list(expected.values())
    pairs = zip(
        errors(list(found.values()), of_exact), errors(list(by_torch.values()), of_exact), strict=True
    )
    assert all(error <= 1.1 * of_torch + 1e-3 for error, of_torch in pairs)


def test_what_is_frozen_gets_no_gradient_and_all_else_the_same() -> None:
    model = native(new_model())
    expected = loss_and_gradients(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("ln_1" not in name and "mlp.c_fc.weight" not in name)
    found = loss_and_gradients(model)
    assert expected.keys() - found.keys() == {
        f"transformer.h.0.{name}" for name in ("ln_1.weight", "ln_1.bias", "mlp.c_fc.weight")
    }
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("frozen", ["", "ln_2.weight"])
def test_gradients_of_micro_batches_add_up_to_those_of_torch_bit_for_bit(
    frozen: str, is_checkpointed: bool
) -> None:
    _, block = layers()
    micro_batches = [(torch.randn(2, 30, 64), torch.randn(2, 30, 64)) for _ in range(3)]
    weights = dict(block.named_parameters())
    with in_bfloat16():
        alone = [with_gradients(block, *micro_batch)[1:] for micro_batch in micro_batches]
        if frozen:
            weights[frozen].requires_grad_(False).grad = torch.ones(64)
        for (inputs, gradient), (of_input, *_) in zip(micro_batches, alone, strict=True):
            given = inputs.clone().requires_grad_()
            outputs = checkpoint(block, given, use_reentrant=False) if is_checkpointed else block(given)
            outputs.backward(gradient)
            assert given.grad is not None and torch.equal(given.grad, of_input)
    for number, (name, weight) in enumerate(weights.items(), 1):
        one, two, three = (gradients[number] for gradients in alone)
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.ones(64) if name == frozen else one + two + three)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = native(new_model()).train()
    expected = loss_and_gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = loss_and_gradients(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_evaluation_gives_the_training_s_outputs() -> None:
    _, compiled = layers()
    inputs = torch.randn(2, 30, 64)
    with in_bfloat16():
        learning = compiled(inputs).detach()
        with torch.inference_mode():
            assert torch.equal(compiled(inputs), learning)


def test_a_saved_model_does_not_know_of_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    plain = new_model()
    for one, folder in ((plain, "plain"), (native(plain), "native")):
        save_model(one, tokenizer, tmp_path / folder)
    names = sorted(file.name for file in (tmp_path / "plain").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "native").iterdir())
    for name in names:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "native" / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"resid_pdrop": 0.1},
        {"attn_pdrop": 0.1},
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"width": 48},
        {"inner": 100},
        {"add_cross_attention": True},
    ],
    ids=str,
)
def test_other_layers_are_left_as_they_are(options: dict[str, Any]) -> None:
    model = new_model(**options)
    assert not has_native_layers(model)
    use_fast_layers(model, "bf16", is_compiled=False)
    assert type(model.transformer.h[0]) is GPT2Block


def test_layers_with_adapters_for_torch_s_compiler_or_in_fp32_are_left_as_they_are() -> None:
    pytest.importorskip("peft")
    adapted = with_adapters(new_model(), targets=["c_attn"])
    use_fast_layers(adapted, "bf16", is_compiled=False)
    assert not has_native_layers(adapted)
    assert type(adapted.transformer.h[0]) is GPT2Block
    for precision, is_compiled in (("bf16", True), ("fp32", False)):
        model = new_model()
        use_fast_layers(model, precision, is_compiled=is_compiled)
        assert has_native_layers(model)
        assert type(model.transformer.h[0]) is GPT2Block
