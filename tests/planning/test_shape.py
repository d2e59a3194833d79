"""Parameters as transformers counts them, operations as by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from gptcli.config.schema import NAMED_SIZES, LoraSettings, Settings
from gptcli.models.adapters import add_adapters
from gptcli.planning.shape import Shape, added_parameters, operations_per_token, trained_parameters
from gptcli.planning.starting import starting_shape
from gptcli.training.job import count_parameters


def real_model(settings: Settings, vocab_size: int, kind: Any = GPT2LMHeadModel, **facts: Any) -> Any:
    """Return the model that transformers makes of this shape, without memory for its weights."""
    model = settings.model
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=model.context_length,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        **facts,
    )
    with torch.device("meta"):
        return kind(config)


def settings_of(**sections: Any) -> Settings:
    return Settings.model_validate({"model": "tiny", **sections})


@pytest.mark.parametrize("size", NAMED_SIZES)
@pytest.mark.parametrize("vocab_size", [50_257, 512])
def test_parameters_are_those_of_the_model_of_transformers(size: str, vocab_size: int) -> None:
    settings = settings_of(model=size, tokenizer={"train": {"vocab_size": vocab_size}})
    expected = count_parameters(real_model(settings, vocab_size))
    assert starting_shape(settings).parameters == expected


def test_small_has_the_published_number_of_parameters() -> None:
    assert Shape.of(12, 12, 768, 1024, 50_257).parameters == 124_439_808


def test_heads_of_other_tasks_are_counted() -> None:
    labels = settings_of(
        task="classification",
        data={"labels": ["a", "b", "c"]},
        tokenizer={"train": {"vocab_size": 300}},
    )
    model = real_model(labels, 300, GPT2ForSequenceClassification, num_labels=3)
    assert starting_shape(labels).parameters == count_parameters(model)
    spans = settings_of(task="question-answering", tokenizer={"train": {"vocab_size": 300}})
    model = real_model(spans, 300, GPT2ForQuestionAnswering)
    assert starting_shape(spans).parameters == count_parameters(model)


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_layers_are_not_counted_as_trained(frozen: int) -> None:
    settings = settings_of(tokenizer={"train": {"vocab_size": 300}}, training={"freeze_layers": frozen})
    model = real_model(settings, 300)
    transformer = model.transformer
    for part in (transformer.wte, transformer.wpe, *transformer.h[:frozen]):
        part.requires_grad_(False)
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(starting_shape(settings), settings.training) == expected


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
def test_adapters_are_those_that_peft_makes(targets: list[Any]) -> None:
    lora = {"rank": 4, "targets": targets}
    settings = settings_of(tokenizer={"train": {"vocab_size": 300}}, training={"lora": lora})
    model = real_model(settings, 300)
    before = count_parameters(model)
    add_adapters(model, LoraSettings(rank=4, targets=targets))
    shape = starting_shape(settings)
    assert shape.parameters == count_parameters(model) == before
    added = sum(p.numel() for p in model.parameters()) - before
    assert added_parameters(shape, settings.training) == added
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(shape, settings.training) == trained


def test_operations_are_those_counted_by_hand() -> None:
    # 2 layers, 8 wide, 10 words, sequences of 16: a layer has matrices of 8 x 24, 8 x 8, 8 x 32, 32 x 8,
    # 768 weights; two products of 16 x 8 numbers a token in attention, 256 multiply-adds.
    shape = Shape.of(2, 2, 8, 16, 10)
    layer = 2 * (768 + 256)
    head = 2 * 8 * 10
    plain = operations_per_token(shape, Settings(), 16)
    assert plain.forward == 2 * layer + head
    assert plain.training == 3 * (2 * layer + head)
    again = operations_per_token(shape, settings_of(training={"gradient_checkpointing": True}), 16)
    assert again.training == plain.training + 2 * layer
    # The lower layer only goes forward; the head, tied to a frozen embedding, passes gradients on.
    frozen = operations_per_token(shape, settings_of(training={"freeze_layers": 1}), 16)
    assert frozen.training == plain.forward + 2 * layer + head
    classifier = operations_per_token(shape, settings_of(task="classification"), 16)
    assert classifier.training == 3 * 2 * layer
