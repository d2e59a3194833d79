from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.models import attention
from gptcli.models.attention import plain_attention, use_plain_attention
from gptcli.models.saving import save_model
from gptcli.native import attention as native_attention
from tests.conftest import errors, skip_without_compiled_code, thread_counts


@pytest.fixture
def plain(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    other = copy.deepcopy(model)
    use_plain_attention(other)
    return other


INPUTS = torch.arange(60).reshape(3, 20) % 40


@pytest.mark.parametrize("queries_at_once", [1, 8, 20, 256])
def test_logits_and_gradients_equal_those_of_hugging_face(
    queries_at_once: int,
    model: GPT2LMHeadModel,
    plain: GPT2LMHeadModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", queries_at_once)
    for one in (model, plain):
        one(input_ids=INPUTS, labels=INPUTS).loss.backward()
    torch.testing.assert_close(plain(INPUTS).logits, model(INPUTS).logits, rtol=0, atol=1e-5)
    for (name, weight), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(other.grad, weight.grad, rtol=0, atol=1e-6, msg=name)


def test_no_token_looks_at_a_later_one(plain: GPT2LMHeadModel) -> None:
    changed = INPUTS.clone()
    changed[:, 10:] = 7
    before, after = (plain.eval()(ids).logits[:, :10] for ids in (INPUTS, changed))
    assert torch.equal(before, after)
    assert not torch.equal(plain(INPUTS).logits, plain(changed).logits)


@pytest.mark.parametrize("case", ["a mask", "a long sequence", "a cache"])
def test_what_it_is_not_for_equals_hugging_face_too(
    case: str, model: GPT2LMHeadModel, plain: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for one in (model.eval(), plain.eval()):
        match case:
            case "a mask":
                mask = torch.ones(3, 1, 20, 20, dtype=torch.bool).tril()
                mask[:, :, :, 3] = False
                mask[:, :, 3, 3] = True
                logits = one(input_ids=INPUTS, attention_mask=mask).logits
            case "a long sequence":
                monkeypatch.setattr(attention, "MAX_TOKENS", 19)
                logits = one(input_ids=INPUTS).logits
            case _:
                begun = one(input_ids=INPUTS[:, :15], use_cache=True)
                rest = one(input_ids=INPUTS[:, 15:], past_key_values=begun.past_key_values)
                logits = torch.cat([begun.logits, rest.logits], 1)
        results.append(logits)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)


def test_attention_weights_are_dropped_in_training_alone(model: GPT2LMHeadModel) -> None:
    use_plain_attention(model)
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.5
    torch.manual_seed(0)
    first, second = model.train()(INPUTS).logits, model(INPUTS).logits
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(INPUTS).logits, model(INPUTS).logits)


def test_a_saved_model_does_not_know_of_it(
    plain: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(plain, tokenizer, tmp_path / "model")
    assert "plain" not in (tmp_path / "model" / "config.json").read_text()
    opened = GPT2LMHeadModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(opened(INPUTS).logits, plain(INPUTS).logits, rtol=0, atol=1e-5)


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Return (batch, tokens, heads, width) of (batch, heads, tokens, width)."""
    return plain_attention(None, query, key, value, None, dropout)[0]


def of_one_product(
    dtype: torch.dtype, tokens: int, batch: int = 2, heads: int = 4, width: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values as GPT-2 has them: parts of one tensor."""
    torch.manual_seed(0)
    product = torch.randn(batch, tokens, 3, heads, width).to(dtype)
    query, key, value = (part.transpose(1, 2).requires_grad_() for part in product.unbind(2))
    return query, key, value


def with_gradients(inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Return the attended values, and the gradients of queries, keys and values."""
    found = attend(inputs[0], inputs[1], inputs[2])
    return [found, *torch.autograd.grad(found, inputs, gradient)]


def exact_with_gradients(inputs: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
    """Return the same by torch in float64."""
    query, key, value = exact = [part.detach().double().requires_grad_() for part in inputs]
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    return [found, *torch.autograd.grad(found, exact, gradient.double())]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("queries_at_once", [4, 10])
def test_gradients_are_those_of_the_function_that_is_computed(
    queries_at_once: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", queries_at_once)
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 10, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(1)  # The same weights are dropped each time.
        return attend(query, key, value, dropout)

    assert torch.autograd.gradcheck(function, inputs)


# In bfloat16 there are two ways without compiled code, and where a CPU has instructions for matrices it
# takes the second.
@pytest.mark.parametrize(
    ("dtype", "is_fused", "tolerance"),
    [(torch.float32, False, 1e-6), (torch.bfloat16, False, 0.01), (torch.bfloat16, True, 0.01)],
)
def test_values_and_gradients_equal_those_of_exact_attention_but_for_rounding(
    dtype: torch.dtype, is_fused: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "multiplies_tiles", lambda: is_fused)
    inputs = of_one_product(dtype, attention.QUERIES_AT_ONCE + 50)
    gradient = torch.randn(2, attention.QUERIES_AT_ONCE + 50, 4, 16).to(dtype)
    found, expected = with_gradients(inputs, gradient), exact_with_gradients(inputs, gradient)
    assert max(errors(found, expected)) <= tolerance


@pytest.fixture
def _kernel() -> None:
    skip_without_compiled_code("attention")


# Whole blocks of 64 keys, and not; more queries than are added up at once; widths of 32 and more.
@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"),
    [
        (1, 2, 1, 32),
        (3, 64, 2, 32),
        (2, 65, 3, 64),
        (1, 256, 2, 96),
        (2, 333, 2, 64),
        (1, 512, 3, 128),
        (1, 600, 1, 64),
    ],
)
def test_compiled_code_is_as_exact_as_torch_in_bfloat16(
    batch: int, tokens: int, heads: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = of_one_product(torch.bfloat16, tokens, batch, heads, width)
    gradient = torch.randn(batch, tokens, heads, width).bfloat16()
    expected = exact_with_gradients(inputs, gradient)
    assert native_attention.suits(inputs[0], 0.0)
    found = errors(with_gradients(inputs, gradient), expected)
    monkeypatch.setattr(native_attention, "_has_kernel", lambda: False)
    by_torch = errors(with_gradients(inputs, gradient), expected)
    for one, other in zip(found, by_torch, strict=True):
        assert one <= 1.05 * other + 1e-4


@pytest.mark.usefixtures("_kernel")
def test_compiled_code_finds_the_same_with_any_number_of_threads() -> None:
    inputs = of_one_product(torch.bfloat16, 200, batch=1, heads=3, width=64)
    gradient = torch.randn(1, 200, 3, 64).bfloat16()
    found = [with_gradients(inputs, gradient) for _ in thread_counts(1, 2, 5)]
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.usefixtures("_kernel")
def test_compiled_code_takes_parts_that_lie_anywhere_and_scores_far_from_0() -> None:
    query, key, value = of_one_product(torch.bfloat16, 100, width=32)
    gradient = torch.randn(2, 100, 4, 32).bfloat16()
    large = [(part.detach() * 30).requires_grad_() for part in (query, key)] + [value]
    assert max(errors(with_gradients(large, gradient), exact_with_gradients(large, gradient))) < 0.02
    # Of which no numbers of a token lie beside each other.
    apart = [
        part.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for part in large
    ]
    spread = gradient.transpose(1, 3).contiguous().transpose(1, 3)
    assert all(map(torch.equal, with_gradients(apart, spread), with_gradients(large, gradient)))


@pytest.mark.usefixtures("_kernel")
def test_compiled_code_lets_no_token_look_at_a_later_one_nor_hides_what_is_no_number() -> None:
    query, key, value = (part.detach() for part in of_one_product(torch.bfloat16, 150, width=32))
    before = attend(query, key, value)
    for part in (query, key, value):
        part[:, :, 100:] = 7
    after = attend(query, key, value)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])
    key[:, :, 3] = torch.nan
    assert attend(query, key, value)[:, 3:].isnan().all()


@pytest.mark.parametrize(
    ("dtype", "width", "dropout"),
    [(torch.float32, 32, 0.0), (torch.bfloat16, 48, 0.0), (torch.bfloat16, 32, 0.1)],
)
def test_compiled_code_is_for_whole_heads_in_bfloat16_without_dropout(
    dtype: torch.dtype, width: int, dropout: float
) -> None:
    query, key, value = of_one_product(dtype, 20, width=width)
    assert not native_attention.suits(query, dropout)
    assert attend(query, key, value, dropout).shape == (2, 20, 4, width)


def test_no_weights_of_long_texts_are_kept() -> None:
    inputs = of_one_product(torch.float32, attention.QUERIES_AT_ONCE + 1)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(*inputs)
    assert [tensor.data_ptr() for tensor in kept[:3]] == [part.data_ptr() for part in inputs]
    assert max(tensor.numel() for tensor in kept) == inputs[0].numel()


@pytest.mark.parametrize(
    ("dtype", "dropout"), [(torch.float32, 0.0), (torch.float32, 0.3), (torch.bfloat16, 0.0)]
)
def test_compilers_may_take_it_as_one_operator(dtype: torch.dtype, dropout: float) -> None:
    seed = torch.tensor(3) if dropout else None
    inputs = of_one_product(dtype, 20, width=32)
    torch.library.opcheck(attention._attend, (*inputs, 0.25, dropout, seed))
