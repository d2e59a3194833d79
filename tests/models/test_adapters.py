"""Low-rank adapters: what they train, and that a saved model has what they learnt."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.schema import LoraSettings, ModelSettings
from gptcli.errors import ConfigError
from gptcli.models.adapters import add_adapters, without_adapters
from gptcli.models.architecture import model_config, new_model

IDS = torch.tensor([[5, 9, 200, 31, 7, 120]])


def with_adapters(model: Any, **settings: Any) -> Any:
    """Return the model with adapters that have learnt something: a new one adds nothing."""
    add_adapters(model, LoraSettings.model_validate(settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


def test_new_adapters_change_nothing(model: GPT2LMHeadModel) -> None:
    expected = copy.deepcopy(model).eval()(IDS).logits
    add_adapters(model, LoraSettings())
    torch.testing.assert_close(model.eval()(IDS).logits, expected, rtol=0, atol=0)


def test_a_matrix_becomes_itself_plus_alpha_over_rank_times_the_product(model: GPT2LMHeadModel) -> None:
    before = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    adapted = with_adapters(model, rank=4, alpha=6.0)
    layer = adapted.transformer.h[0].attn.c_attn
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    # GPT-2 keeps its matrices as (inputs, outputs).
    expected = before + 6.0 / 4 * (b @ a).T
    merged = without_adapters(adapted).transformer.h[0].attn.c_attn.weight
    torch.testing.assert_close(merged, expected)
    assert (merged - before).abs().max() > 0.01


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
def test_the_merged_model_is_a_plain_one_with_the_same_logits(
    model: GPT2LMHeadModel, targets: list[str]
) -> None:
    names = [name for name, _ in model.named_parameters()]
    plain = model(IDS).logits
    adapted = with_adapters(model, targets=targets)
    expected = adapted(IDS).logits
    merged = without_adapters(adapted)
    assert [name for name, _ in merged.named_parameters()] == names
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-2)
    # The training goes on with what it had.
    torch.testing.assert_close(adapted(IDS).logits, expected, rtol=0, atol=0)


def test_a_model_without_adapters_is_not_copied(model: GPT2LMHeadModel) -> None:
    assert without_adapters(model) is model


def test_adapters_and_a_head_are_trained_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, model_settings: ModelSettings
) -> None:
    config = model_config(model_settings, tokenizer)
    classifier = new_model(config, 0, GPT2ForSequenceClassification)
    add_adapters(classifier, LoraSettings(rank=4))
    trained = {name: p.numel() for name, p in classifier.named_parameters() if p.requires_grad}
    assert trained.pop("score.weight") == 2 * 32
    assert all("attn.c_attn.lora_" in name for name in trained)
    # 2 layers; (32 in + 96 out) x rank 4 each.
    assert sum(trained.values()) == 2 * (32 + 96) * 4


def test_without_peft_it_says_what_to_install(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'needs the package peft: pip install "gptcli\[lora\]"'):
        add_adapters(model, LoraSettings())
