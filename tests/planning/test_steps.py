"""Steps by number, by passes over the data, or by tokens for each parameter."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gptcli.config.schema import Settings, TrainingSettings
from gptcli.planning.steps import planned_steps


@pytest.mark.parametrize(
    ("settings", "steps_per_epoch", "expected"),
    [
        ({"max_steps": 7}, 1.0, 7),
        ({"epochs": 1.5}, 10.1, 16),  # 15.15
        ({"epochs": 0.001}, 10.0, 1),
        ({"epochs": 2}, None, None),
        # 20 times 1,000 parameters are 20,000 tokens, 312.5 steps of 64.
        ({"tokens_per_parameter": 20}, None, 313),
        ({"tokens_per_parameter": 20}, 100.0, 313),
        ({"tokens_per_parameter": 20}, 50.3, 202),  # 4 passes: 201.2
        ({"tokens_per_parameter": 0.001}, 50.0, 1),
    ],
)
def test_steps(settings: dict[str, Any], steps_per_epoch: float | None, expected: int | None) -> None:
    training = TrainingSettings.model_validate(settings)
    assert planned_steps(training, 1_000, 64, steps_per_epoch) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 20),
        ({"model": "small"}, 20),
        ({"training": {"batch_size": 8}}, 20),
        ({"training": {"max_steps": 5}}, None),
        ({"training": {"epochs": 5}}, None),
        ({"training": {"tokens_per_parameter": 3}}, 3),
        ({"model": {"name": "gpt2"}}, None),
        ({"task": "classification"}, None),
    ],
)
def test_a_new_language_model_has_20_tokens_a_parameter_if_nothing_else_is_set(
    settings: dict[str, Any], expected: float | None
) -> None:
    assert Settings.model_validate(settings).training.tokens_per_parameter == expected


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"max_steps": 5, "epochs": 1}, "epochs and max_steps"),
        ({"max_steps": 5, "tokens_per_parameter": 1}, "tokens_per_parameter and max_steps"),
        ({"epochs": 5, "tokens_per_parameter": 1}, "epochs and tokens_per_parameter"),
    ],
)
def test_two_lengths_exclude_each_other(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ValidationError, match=f"{names} exclude each other"):
        TrainingSettings.model_validate(settings)
