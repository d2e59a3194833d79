from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.models import attention
from gptcli.models.attention import plain_attention, use_plain_attention
from gptcli.models.saving import save_model


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


def of_one_product(dtype: torch.dtype, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values as GPT-2 has them: parts of one tensor."""
    torch.manual_seed(0)
    product = torch.randn(2, tokens, 3, 4, 16).to(dtype)
    query, key, value = (part.transpose(1, 2).requires_grad_() for part in product.unbind(2))
    return query, key, value


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


# In bfloat16 there are two ways, and where a CPU has instructions for matrices it takes the second.
@pytest.mark.parametrize(
    ("dtype", "is_fused", "tolerance"),
    [(torch.float32, False, 1e-6), (torch.bfloat16, False, 0.01), (torch.bfloat16, True, 0.01)],
)
def test_values_and_gradients_equal_those_of_exact_attention_but_for_rounding(
    dtype: torch.dtype, is_fused: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_has_matrix_instructions", lambda: is_fused)
    inputs = of_one_product(dtype, attention.QUERIES_AT_ONCE + 50)
    query, key, value = exact = tuple(part.detach().double().requires_grad_() for part in inputs)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    gradient = torch.randn(expected.shape)
    found = attend(*inputs)
    of_found = torch.autograd.grad(found, inputs, gradient.to(dtype))
    of_expected = torch.autograd.grad(expected, exact, gradient.to(dtype).double())
    for one, other in zip((found, *of_found), (expected, *of_expected), strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


def test_no_weights_of_long_texts_are_kept() -> None:
    inputs = of_one_product(torch.float32, attention.QUERIES_AT_ONCE + 1)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(*inputs)
    assert [tensor.data_ptr() for tensor in kept] == [part.data_ptr() for part in inputs]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compilers_may_take_it_as_one_operator(dropout: float) -> None:
    seed = torch.tensor(3) if dropout else None
    torch.library.opcheck(attention._attend, (*of_one_product(torch.float32, 20), 0.25, dropout, seed))
