from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.models import attention
from gptcli.models.attention import use_plain_attention
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


def test_gradients_through_dropped_weights_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", 4)
    torch.manual_seed(0)
    inputs = [torch.randn(2, 10, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # The same weights are dropped each time.
        attended: torch.Tensor = attention._CausalAttention.apply(*inputs, 0.5, 0.3)  # type: ignore[no-untyped-call]
        return attended

    assert torch.autograd.gradcheck(attend, inputs)
