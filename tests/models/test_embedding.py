"""An embedding adds its gradient to the weights' own; it is the gradient that torch makes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli.models.embedding import AddingEmbedding, use_adding_embedding


@pytest.fixture(params=[True, False], ids=["the head's weights", "weights of its own"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1,
        n_head=2,
        n_embd=8,
        vocab_size=11,
        n_positions=16,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        tie_word_embeddings=request.param,
    )
    return GPT2LMHeadModel(config)


# Words that come often, and some that never do.
IDS = torch.tensor([[1, 5, 5, 2, 1, 1], [3, 2, 5, 9, 1, 7]])


def learn(model: Any, times: int = 1) -> None:
    for _ in range(times):
        torch.autograd.backward(model(input_ids=IDS, labels=IDS).loss)


@pytest.mark.parametrize("times", [1, 3])
def test_gradients_are_those_of_torch(model: Any, times: int) -> None:
    changed = copy.deepcopy(model)
    use_adding_embedding(changed)
    assert type(changed.transformer.wte) is AddingEmbedding
    learn(model, times)
    learn(changed, times)
    for (name, weight), other in zip(model.named_parameters(), changed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, weight.grad, msg=name)
        assert other.grad.layout == torch.strided


def test_no_gradient_of_all_words_is_made_beside_the_head_s(model: Any) -> None:
    use_adding_embedding(model)
    learn(model)  # Later ones are added to these.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        learn(model)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::embedding_dense_backward"] == 1  # That of positions.
    assert counts["aten::index_add_"] == 1


def test_frozen_weights_get_no_gradient(model: Any) -> None:
    use_adding_embedding(model)
    model.requires_grad_(False)
    model.transformer.wpe.requires_grad_()
    learn(model)
    assert model.transformer.wte.weight.grad is None
    assert model.transformer.wpe.weight.grad is not None


def test_without_gradients_it_is_an_embedding() -> None:
    embedding = AddingEmbedding(4, 2)
    with torch.no_grad():
        found = embedding(torch.tensor([[3, 0]]))
    assert torch.equal(found, embedding.weight[[3, 0]][None])
    assert embedding.weight.grad is None
