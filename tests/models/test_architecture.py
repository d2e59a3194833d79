"""Named sizes are the published GPT-2 shapes, and a new model knows its own end-of-text."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.schema import ModelSettings, SizeName
from gptcli.models.activation import fuse_activation
from gptcli.models.architecture import model_config, new_model
from gptcli.training.compiling import FusableGelu, compile_layers
from gptcli.training.job import count_parameters

GPT2_VOCABULARY = 50_257


@pytest.fixture(scope="session")
def gpt2_sized_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer with as many tokens as GPT-2's."""
    larger = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token
    )
    larger.add_tokens([f"token-{number}" for number in range(GPT2_VOCABULARY - len(larger))])
    return larger


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("small", 124_439_808),
        ("medium", 354_823_168),
        ("large", 774_030_080),
        ("xl", 1_557_611_200),
    ],
)
def test_a_named_size_has_the_published_number_of_parameters(
    size: SizeName, parameters: int, gpt2_sized_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = model_config(ModelSettings(size=size), gpt2_sized_tokenizer)
    with torch.device("meta"):
        assert count_parameters(GPT2LMHeadModel(config)) == parameters


def test_a_small_shape_has_the_parameters_counted_by_hand(model: GPT2LMHeadModel) -> None:
    # Embeddings of 300 tokens and 32 positions; two blocks of two norms, attention and MLP; a norm.
    norm = 2 * 32
    attention = 32 * 96 + 96 + 32 * 32 + 32
    mlp = 32 * 128 + 128 + 128 * 32 + 32
    assert count_parameters(model) == 300 * 32 + 32 * 32 + 2 * (2 * norm + attention + mlp) + norm


def test_begin_end_and_padding_are_the_end_of_text_of_the_tokenizer(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    expected = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (expected,) * 3


def test_the_activation_is_that_of_gpt2(model: GPT2LMHeadModel) -> None:
    from transformers.activations import ACT2FN

    values = torch.linspace(-6, 6, 1001)
    published = ACT2FN[GPT2Config().activation_function]
    torch.testing.assert_close(ACT2FN[model.config.activation_function](values), published(values))


def test_dropout_is_set_everywhere_or_nowhere(tokenizer: PreTrainedTokenizerFast) -> None:
    for dropout in (0.0, 0.25):
        config = model_config(ModelSettings(size="tiny", dropout=dropout), tokenizer)
        assert (config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) == (dropout,) * 3


def test_the_seed_decides_the_initial_weights(model: GPT2LMHeadModel) -> None:
    same, other = new_model(model.config, seed=0), new_model(model.config, seed=1)
    name = "transformer.h.1.attn.c_attn.weight"
    assert torch.equal(same.state_dict()[name], model.state_dict()[name])
    assert not torch.equal(other.state_dict()[name], model.state_dict()[name])


def test_every_token_of_a_tokenizer_with_gaps_has_an_embedding(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: {"a": 0, "b": 700})
    assert model_config(ModelSettings(size="tiny"), tokenizer).vocab_size == 701


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_pytorch_tanh"])
def test_a_fused_activation_is_the_function_of_that_name(name: str) -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=50, activation_function=name)
    model = GPT2LMHeadModel(config)
    inputs = torch.linspace(-8, 8, 1001)
    expected = model.transformer.h[0].mlp.act(inputs)
    fuse_activation(model)
    assert isinstance(model.transformer.h[0].mlp.act, nn.GELU)
    torch.testing.assert_close(model.transformer.h[0].mlp.act(inputs), expected, rtol=1e-5, atol=1e-6)


def test_another_activation_function_stays() -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=50, activation_function="relu")
    model = GPT2LMHeadModel(config)
    fuse_activation(model)
    assert isinstance(model.transformer.h[0].mlp.act, nn.ReLU)


def test_compiling_finds_the_activation_of_a_new_model(model: GPT2LMHeadModel) -> None:
    compile_layers(model)  # Nothing is compiled before it is used.
    assert isinstance(model.transformer.h[0].mlp.act, FusableGelu)
