"""The JSON Schema takes what the reader takes, and completes what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gptcli.config.json_schema import json_schema, schema_text
from gptcli.config.loading import load_settings, setting_values
from gptcli.config.names import setting_names
from gptcli.config.yaml_reading import parse_yaml
from gptcli.errors import ConfigError
from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
VALIDATOR = jsonschema.Draft7Validator(json_schema())


def is_valid(value: Any) -> bool:
    valid: bool = VALIDATOR.is_valid(value)
    return valid


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(json_schema())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_names_the_schema(config: Path) -> None:
    text = config.read_text()
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (config.parent / first.partition("=")[2]).resolve() == REPOSITORY / "configs" / "schema.json"
    ours, _ = parse_yaml(text)
    theirs = yaml.safe_load(text)  # YAML 1.1, for which 1e-4 is text.
    assert list(VALIDATOR.iter_errors(ours)) == []
    assert list(VALIDATOR.iter_errors(theirs)) == []


def test_the_committed_schema_is_up_to_date() -> None:
    assert (REPOSITORY / "configs" / "schema.json").read_text() == schema_text(), "run `make docs`"


def test_it_knows_every_setting_with_its_description() -> None:
    for name in setting_names():
        node = {"properties": json_schema()["properties"]}
        for key in name.split("."):
            choices = [node, *node.get("anyOf", [])]
            node = next(choice for choice in choices if "properties" in choice)["properties"][key]
        assert node["description"], name


@pytest.mark.parametrize(
    "text",
    [
        "model: small",
        "model:\ntraining:\n",  # All of it commented out.
        "model: {size: tiny, context_length: null}",
        "tokenizer: gpt2",
        "tokenizer: {train: {vocab_size: 1_000}}",
        "training: {micro_batch_size: auto}",
        "training: {micro_batch_size: 8}",
        "training: {class_weights: balanced}",
        "training: {class_weights: {spam: 2, ham: 0.5}}",
        "training: {lora: }",
        "training: {lora: {rank: 4, targets: [c_attn, c_fc]}}",
        "training: {learning_rate: 1e-4, epochs: 2.5, max_minutes: 30}",
        "data: {source: a.txt}",
        "data: {source: [a.txt, b.txt], labels: [bad, good], columns: {label: [toxic, insult]}}",
        "evaluation: {choices: [a, b]}",
        "runtime: {device: 'cuda:1', threads: }",
        "runtime: {device: mps, precision: bf16}",
        "logging: {trackers: tensorboard, project: mine}",
        "logging: {trackers: [tensorboard, wandb]}",
    ],
)
def test_what_the_reader_takes_is_valid(tmp_path: Path, text: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    load_settings(file)
    assert is_valid(parse_yaml(text)[0])


@pytest.mark.parametrize(
    "text",
    [
        "trainig: {}",
        "training: {max_step: 5}",
        "training: {max_steps: 0}",
        "training: {max_steps: many}",
        "training: {micro_batch_size: 0}",
        "training: {micro_batch_size: some}",
        "training: {optimizer: sgd}",
        "training: {lora: {rank: 0}}",
        "training: 5",
        "model: huge",
        "task: translation",
        "runtime: {device: gpu}",
        "runtime: {precision: fp8}",
        "data: {columns: }",
        "data: {validation_fraction: 1}",
    ],
)
def test_what_the_reader_refuses_is_not_valid(tmp_path: Path, text: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_settings(file)
    assert not is_valid(parse_yaml(text)[0])


def test_the_config_of_a_run_is_valid() -> None:
    assert is_valid(setting_values(load_settings(None)))
    assert is_valid(setting_values(load_settings(None, ["model.name=a", "training.lora.rank=4"])))
