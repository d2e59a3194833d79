"""Names of settings and of the variables that set them."""

from __future__ import annotations

import pytest

from gptcli.config.names import nearest_setting, setting_names, setting_of_variable, variable_name


def test_every_setting_has_a_variable_of_its_own() -> None:
    variables = [variable_name(name) for name in setting_names()]
    assert len(set(variables)) == len(variables)
    for name, variable in zip(setting_names(), variables, strict=True):
        assert setting_of_variable(variable) == tuple(name.split("."))
    assert "GPTCLI_TRAINING__LORA__RANK" in variables


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("GPTCLI_TASK", ("task",)),
        ("GPTCLI_TRAINIG__MAX_STEPS", ("trainig", "max_steps")),
        ("GPTCLI_DEBUG", None),
        ("GPTCLI_OTHER__THING", None),
        ("TRAINING__MAX_STEPS", None),
        ("gptcli_training__max_steps", None),
        ("GPTCLI_", None),
        ("GPTCLI___", None),
    ],
)
def test_a_variable_is_a_setting_by_its_section(variable: str, path: tuple[str, ...] | None) -> None:
    assert setting_of_variable(variable) == path


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        (("training", "max_step"), "training.max_steps"),
        (("learning_rate",), "training.learning_rate"),
        (("training", "per_device_train_batch_size"), "training.batch_size"),
        (("training", "xyzzy"), None),
    ],
)
def test_the_nearest_setting_is_found(path: tuple[str, ...], meant: str | None) -> None:
    assert nearest_setting(path) == meant
