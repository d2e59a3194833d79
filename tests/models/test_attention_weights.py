"""Attention weights beside those of transformers, and beside the formula worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from gptcli.models.attention import use_plain_attention
from gptcli.models.attention_weights import attention_weights

IDS = [5, 250, 17, 17, 3, 0, 99, 42, 5, 1]
SHAPE = {"vocab_size": 300, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}


def some_model(kind: Any = GPT2LMHeadModel, **options: Any) -> Any:
    """Return a model whose attention is far from even: its weights are larger than at the start."""
    torch.manual_seed(1)
    model = kind(GPT2Config(**SHAPE, initializer_range=0.3, pad_token_id=0, **options))
    return model.eval()


def hugging_face_weights(model: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        found = model(torch.tensor([IDS]), output_attentions=True).attentions
    return torch.stack([layer[0] for layer in found])


@pytest.mark.parametrize(
    "kind", [GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2ForQuestionAnswering]
)
def test_weights_are_those_of_hugging_face(kind: Any) -> None:
    model = some_model(kind)
    weights, _ = attention_weights(model.transformer, IDS, range(3))
    assert weights.shape == (3, 4, len(IDS), len(IDS))
    torch.testing.assert_close(weights, hugging_face_weights(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}]
)
def test_scores_are_scaled_as_the_config_says(options: dict[str, bool]) -> None:
    model = some_model(**options)
    weights, _ = attention_weights(model.transformer, IDS, range(3))
    torch.testing.assert_close(weights, hugging_face_weights(model), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights, attention_weights(some_model().transformer, IDS, range(3))[0])


def test_weights_are_the_formula_worked_by_hand() -> None:
    """Layer 0 from its matrices alone, in numpy and float64, pair by pair."""
    model = some_model()
    w = {name: p.detach().double().numpy() for name, p in model.transformer.named_parameters()}
    hidden = w["wte.weight"][IDS] + w["wpe.weight"][: len(IDS)]
    centred = hidden - hidden.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    normed = normed * w["h.0.ln_1.weight"] + w["h.0.ln_1.bias"]
    product = normed @ w["h.0.attn.c_attn.weight"] + w["h.0.attn.c_attn.bias"]
    width, heads, d_k = 32, 4, 8
    expected = np.zeros((heads, len(IDS), len(IDS)))
    for head in range(heads):
        q = product[:, head * d_k : (head + 1) * d_k]
        k = product[:, width + head * d_k : width + (head + 1) * d_k]
        for query in range(len(IDS)):
            powers = [np.exp(q[query] @ k[key] / np.sqrt(d_k)) for key in range(query + 1)]
            expected[head, query, : query + 1] = np.array(powers) / sum(powers)
    weights, _ = attention_weights(model.transformer, IDS, [0])
    np.testing.assert_allclose(weights[0].numpy(), expected, rtol=1e-4, atol=1e-6)
    assert expected.max(-1)[:, -1].max() > 0.5  # Not the even weights of a new model.


def test_rows_sum_to_one_and_no_later_token_is_looked_at() -> None:
    weights, _ = attention_weights(some_model().transformer, IDS, range(3))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, len(IDS)))
    assert weights.triu(1).count_nonzero() == 0
    assert (weights[..., 0, 0] == 1).all()


def test_the_layers_that_are_asked_for_come_in_their_order() -> None:
    transformer = some_model().transformer
    whole, _ = attention_weights(transformer, IDS, range(3))
    some, _ = attention_weights(transformer, IDS, [2, 0])
    assert torch.equal(some, whole[[2, 0]])


def test_hidden_states_are_those_of_the_model_and_nothing_is_left_behind() -> None:
    model = some_model()
    _, hidden = attention_weights(model.transformer, IDS, range(3))
    with torch.inference_mode():
        expected = model.transformer(torch.tensor([IDS])).last_hidden_state[0]
    assert torch.equal(hidden, expected)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_kernel_does_not_matter() -> None:
    model = some_model()
    whole, _ = attention_weights(model.transformer, IDS, range(3))
    use_plain_attention(model)
    plain, _ = attention_weights(model.transformer, IDS, range(3))
    torch.testing.assert_close(plain, whole, rtol=1e-5, atol=1e-6)
