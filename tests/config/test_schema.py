"""Every setting: defaults, bounds, short forms, and what belongs together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from transformers import GPT2Config

from gptcli.config.names import section_type
from gptcli.config.schema import (
    NAMED_SIZES,
    GenerationSettings,
    ModelSettings,
    Settings,
    TokenizerSettings,
    TrainingSettings,
)


def shape(model: ModelSettings) -> tuple[int | None, ...]:
    return model.n_layer, model.n_head, model.n_embd, model.context_length


@pytest.mark.parametrize(
    ("size", "expected"),
    # From the config.json files of gpt2, gpt2-medium, gpt2-large and gpt2-xl.
    [
        ("small", (12, 12, 768, 1024)),
        ("medium", (24, 16, 1024, 1024)),
        ("large", (36, 20, 1280, 1024)),
        ("xl", (48, 25, 1600, 1024)),
    ],
)
def test_named_sizes_are_the_published_shapes(size: str, expected: tuple[int, ...]) -> None:
    assert shape(ModelSettings.model_validate(size)) == expected


def test_small_is_the_shape_that_hugging_face_defaults_to() -> None:
    config = GPT2Config()
    assert NAMED_SIZES["small"] == (config.n_layer, config.n_head, config.n_embd, config.n_positions)


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_every_named_size_has_heads_of_one_width(size: str) -> None:
    _, n_head, n_embd, _ = NAMED_SIZES[size]
    assert n_embd % n_head == 0


def test_a_size_can_be_changed_in_part() -> None:
    model = ModelSettings.model_validate({"size": "tiny", "n_layer": 3, "context_length": None})
    assert shape(model) == (3, 2, 64, 128)


def test_without_size_or_width_the_model_is_mini() -> None:
    assert shape(ModelSettings.model_validate({"context_length": 64})) == (4, 4, 256, 64)
    assert ModelSettings() == ModelSettings(size="mini") == Settings().model


def test_pretraining_has_no_dropout_by_default() -> None:
    assert Settings().model.dropout == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_layer": 2, "n_head": 2}, "n_layer, n_head and n_embd"),
        ({"n_layer": 2, "n_head": 2, "n_embd": 32}, "context_length"),
        (
            {"n_layer": 2, "n_head": 3, "n_embd": 32, "context_length": 8},
            "n_embd 32 is not divisible by n_head 3",
        ),
        ({"size": "small", "n_head": 7}, "n_embd 768 is not divisible by n_head 7"),
    ],
)
def test_a_shape_that_is_none_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings.model_validate(values)


@pytest.mark.parametrize(
    ("value", "name", "vocab_size"),
    [
        ("gpt2", "gpt2", None),
        ({"name": "runs/a/model"}, "runs/a/model", None),
        ({"train": {"vocab_size": 500}}, None, 500),
        ({"train": {}}, None, 8192),
        ({}, None, 8192),
    ],
)
def test_a_tokenizer_is_a_name_or_a_training(
    value: object, name: str | None, vocab_size: int | None
) -> None:
    tokenizer = TokenizerSettings.model_validate(value)
    assert tokenizer.name == name
    assert (tokenizer.train.vocab_size if tokenizer.train else None) == vocab_size


def test_a_tokenizer_is_not_both_name_and_training() -> None:
    with pytest.raises(ValidationError, match="not both"):
        TokenizerSettings.model_validate({"name": "gpt2", "train": {"vocab_size": 500}})


@pytest.mark.parametrize("value", ["auto", 1, 8])
def test_micro_batch_size_is_auto_or_positive(value: object) -> None:
    assert TrainingSettings.model_validate({"micro_batch_size": value}).micro_batch_size == value


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "8", "Auto", None, [1]])
def test_micro_batch_size_is_nothing_else(value: object) -> None:
    with pytest.raises(ValidationError, match="auto or a whole number"):
        TrainingSettings.model_validate({"micro_batch_size": value})


def test_a_micro_batch_is_no_more_than_a_batch() -> None:
    assert TrainingSettings(batch_size=4, micro_batch_size=4).micro_batch_size == 4
    with pytest.raises(ValidationError, match="micro_batch_size 5 is more than batch_size 4"):
        TrainingSettings(batch_size=4, micro_batch_size=5)


@pytest.mark.parametrize("name", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_devices_have_the_names_that_torch_gives_them(name: str) -> None:
    assert Settings.model_validate({"runtime": {"device": name}}).runtime.device == name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA", "", 0, None])
def test_other_devices_are_refused(name: object) -> None:
    with pytest.raises(ValidationError, match="auto, cpu, cuda, cuda:N or mps"):
        Settings.model_validate({"runtime": {"device": name}})


@pytest.mark.parametrize("source", ["a.txt", ["a.txt", "b/*.md"], "builtin:python-docs"])
def test_a_source_is_text_or_a_list_of_it(source: object) -> None:
    assert Settings.model_validate({"data": {"source": source}}).data.source == source


@pytest.mark.parametrize("source", ["", [], [""], ["a", 1], 5, None, {"path": "a"}])
def test_other_sources_are_refused(source: object) -> None:
    with pytest.raises(ValidationError, match="a path, a glob, a data set name, or a list"):
        Settings.model_validate({"data": {"source": source}})


@pytest.mark.parametrize("option", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.9}])
def test_any_of_temperature_top_k_and_top_p_means_sampling(option: dict[str, Any]) -> None:
    assert GenerationSettings.model_validate(option).is_sampling
    assert not GenerationSettings().is_sampling


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 5, "max_length": 5},
        {"num_return_sequences": 2},
        {"temperature": 0},
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.01},
        {"max_new_tokens": 0},
    ],
)
def test_generation_settings_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GenerationSettings.model_validate(values)


@pytest.mark.parametrize(
    ("section", "key", "low", "high"),
    [
        ("training", "learning_rate", None, 10),
        ("training", "max_steps", 1, None),
        ("training", "batch_size", 1, 1_000_000),
        ("training", "warmup_steps", 0, None),
        ("training", "min_learning_rate_ratio", 0, 1),
        ("training", "save_steps", 1, None),
        ("evaluation", "eval_steps", 1, None),
        ("logging", "log_steps", 1, None),
        ("runtime", "seed", 0, 2**32 - 1),
        ("runtime", "threads", 1, 4096),
        ("data", "validation_fraction", 0, None),
    ],
)
def test_bounds_are_inclusive_and_hold(
    section: str, key: str, low: float | None, high: float | None
) -> None:
    for bound, outside in ((low, -1), (high, 1)):
        if bound is not None:
            settings = Settings.model_validate({section: {key: bound}})
            assert settings.model_dump()[section][key] == bound
            with pytest.raises(ValidationError):
                Settings.model_validate({section: {key: bound + outside}})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "learning_rate", 0.0),
        ("model", "dropout", 1.0),
        ("data", "validation_fraction", 1.0),
        ("training", "adam_beta1", 1.0),
    ],
)
def test_open_bounds_hold(section: str, key: str, value: float) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({section: {key: value}})


@pytest.mark.parametrize("value", ["3", 3.0, True, None, [3]])
def test_nothing_is_silently_converted_to_a_whole_number(value: object) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"training": {"max_steps": value}})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
def test_only_finite_numbers_are_settings(value: float) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate({"training": {"max_grad_norm": value}})


def test_every_setting_says_what_it_is() -> None:
    def fields(section: type[BaseModel]) -> None:
        assert section.__doc__
        for key, field in section.model_fields.items():
            inner = section_type(field.annotation)
            if inner is not None:
                fields(inner)
            else:
                assert field.description, key

    fields(Settings)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().training.max_steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "rate"),
    # 4e-3 at 256, and half as much at four times the width.
    [
        ({}, 4e-3),
        ("mini", 4e-3),
        ({"size": "tiny"}, 8e-3),
        ({"n_layer": 1, "n_head": 1, "n_embd": 1024, "context_length": 8}, 2e-3),
        ({"size": "small"}, 2.3e-3),
    ],
)
def test_a_new_model_learns_with_muon_at_a_rate_for_its_width(model: object, rate: float) -> None:
    training = Settings.model_validate({"model": model}).training
    assert (training.optimizer, training.learning_rate) == ("muon", rate)


def test_what_is_set_is_not_decided_by_the_model() -> None:
    given = {"optimizer": "adamw", "learning_rate": 1e-3}
    training = Settings.model_validate({"training": given}).training
    assert (training.optimizer, training.learning_rate) == ("adamw", 1e-3)


def test_a_model_that_is_there_learns_with_adamw() -> None:
    training = Settings.model_validate({"model": {"name": "gpt2"}}).training
    assert (training.optimizer, training.learning_rate) == ("adamw", 3e-4)
