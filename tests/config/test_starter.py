"""Configs to start from: short, valid, and true also where what is commented out is taken up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from gptcli.config.json_schema import json_schema
from gptcli.config.loading import load_settings
from gptcli.config.names import setting_names
from gptcli.config.schema import Settings, TaskName
from gptcli.config.starter import STARTERS, starter_config
from gptcli.config.yaml_reading import parse_yaml

MACHINE = {"device": ("cpu", "no GPU found"), "precision": ("bf16", "the CPU multiplies it")}
TASKS: tuple[TaskName, ...] = get_args(TaskName)


def written(task: TaskName, tmp_path: Path) -> Path:
    file = tmp_path / "my.yaml"
    file.write_text(starter_config(task, "my.yaml", MACHINE))
    return file


def test_every_task_has_one() -> None:
    assert tuple(STARTERS) == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_it_is_short_and_valid_and_sets_task_and_machine(task: TaskName, tmp_path: Path) -> None:
    file = written(task, tmp_path)
    settings = load_settings(file)
    assert (settings.task, settings.runtime.device, settings.runtime.precision) == (task, "cpu", "bf16")
    lines = file.read_text().splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 105
    values, _ = parse_yaml(file.read_text())
    jsonschema.validate(values, json_schema())


@pytest.mark.parametrize("task", TASKS)
def test_each_setting_that_is_commented_out_can_be_taken_up(task: TaskName, tmp_path: Path) -> None:
    file = written(task, tmp_path)
    lines = file.read_text().splitlines()
    # Of a section within a section, the line with its name goes along.
    offers = [n for n, line in enumerate(lines) if re.match(r"  # +\w+:", line)]
    names = setting_names()
    assert len(offers) >= 5
    for offer in offers:
        changed = list(lines)
        is_inner = lines[offer].startswith("  #   ")
        above = [n for n in offers[: offers.index(offer)] if is_inner and lines[n].endswith(":")]
        for n in (offer, *above):
            changed[n] = "  " + lines[n].removeprefix("  # ")
        values, where = parse_yaml("\n".join(changed))
        [name] = {".".join(path) for path, line in where.items() if line == offer + 1}
        # Beside a name, a model has no shape and a tokenizer no training: --set takes that in turn.
        section, _, key = name.partition(".")
        if key == "name":
            assert load_settings(file, [f"{name}={values[section][key]}"])
        elif name == "training.epochs":
            assert load_settings(file, [f"{name}={values[section][key]}"]).training.epochs
        elif name in names:
            assert Settings.model_validate(_with_empty_sections(values)), name


def _with_empty_sections(values: dict[str, Any]) -> dict[str, Any]:
    return {key: {} if value is None else value for key, value in values.items()}
