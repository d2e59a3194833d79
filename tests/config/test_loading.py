"""Defaults < file < environment < --set < options; problems with their line, and what to write."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gptcli.config.loading import (
    dump_settings,
    dump_value,
    load_settings,
    resolve_settings,
    setting_values,
)
from gptcli.config.names import FOREIGN_NAMES, setting_names
from gptcli.config.schema import Settings
from gptcli.errors import ConfigError

VALID = """\
# A config that uses every kind of value.
task: language-modelling
model: {size: tiny, context_length: 64, dropout: 0.1}
tokenizer:
  train:
    vocab_size: 1_000
data:
  source: [a.txt, "b/*.md"]
  columns: {text: body}
  validation_fraction: .05
training:
  max_steps: 500
  micro_batch_size: auto
  learning_rate: 1e-4
evaluation: {max_tokens: null}
generation: {temperature: 0.8, num_return_sequences: 2}
runtime: {device: cpu, precision: bf16, seed: 7}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "my.yaml"
    file.write_text(VALID)
    return file


def problems(config: Path | None, *assignments: str, **sections: dict[str, Any]) -> list[str]:
    """Return the lines of the ConfigError that loading raises."""
    with pytest.raises(ConfigError) as error:
        load_settings(config, assignments, sections)
    return str(error.value).splitlines()


def problems_of(tmp_path: Path, text: str) -> list[str]:
    """Return the same for a file of `text`, without the folder's name."""
    file = tmp_path / "my.yaml"
    file.write_text(text)
    return [line.replace(f"{tmp_path}/", "") for line in problems(file)]


# What is read


def test_no_config_means_the_defaults() -> None:
    assert load_settings(None) == Settings()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "training:\nmodel:\n  # size: small\n"])
def test_a_config_without_settings_means_the_defaults(tmp_path: Path, text: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    assert load_settings(file) == Settings()


def test_a_config_holds_what_differs(config: Path) -> None:
    settings = load_settings(config)
    assert settings.training.learning_rate == 0.0001
    assert settings.training.max_steps == 500
    assert settings.training.batch_size == Settings().training.batch_size
    assert settings.model.context_length == 64
    assert settings.model.n_embd == 64
    assert settings.tokenizer.train is not None
    assert settings.tokenizer.train.vocab_size == 1000
    assert settings.data.source == ["a.txt", "b/*.md"]
    assert settings.data.columns.text == "body"
    assert settings.evaluation.max_tokens is None


def test_a_byte_order_mark_and_crlf_are_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "windows.yaml"
    file.write_bytes(b"\xef\xbb\xbftraining:\r\n  max_steps: 5\r\n")
    assert load_settings(file).training.max_steps == 5


# Precedence


def test_each_layer_wins_over_the_ones_below(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("runtime: {seed: 1, threads: 1, device: cpu}\n")
    settings = load_settings(file, ["runtime.seed=2", "runtime.threads=2"], {"runtime": {"seed": 3}})
    assert settings.runtime.precision == "auto"  # the default
    assert settings.runtime.device == "cpu"  # the file
    assert settings.runtime.threads == 2  # --set
    assert settings.runtime.seed == 3  # the option


def test_the_last_set_of_the_same_setting_wins() -> None:
    settings = load_settings(None, ["training.max_steps=5", "training.max_steps=6"])
    assert settings.training.max_steps == 6


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate= 3e-4", 3e-4),
        ("training.max_steps=1_000", 1000),
        ("data.source=a=b.txt", "a=b.txt"),
        ("data.source=[a.txt, b.txt]", ["a.txt", "b.txt"]),
        ("data.source='123'", "123"),
        ("data.columns.text=body", "body"),
        ("runtime.threads=null", None),
    ],
)
def test_set_reads_its_value_as_yaml(assignment: str, value: object) -> None:
    values: Any = load_settings(None, [assignment]).model_dump()
    for key in assignment.partition("=")[0].split("."):
        values = values[key]
    assert values == value


def test_set_reaches_into_a_section_in_short_form(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: tiny\ntokenizer: gpt2\n")
    settings = load_settings(file, ["model.dropout=0.2", "tokenizer.train.vocab_size=300"])
    assert (settings.model.size, settings.model.dropout) == ("tiny", 0.2)
    assert settings.tokenizer.name is None
    assert settings.tokenizer.train is not None
    assert settings.tokenizer.train.vocab_size == 300


def test_a_stronger_layer_replaces_what_excludes_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "model: {n_layer: 2, n_head: 2, n_embd: 32, context_length: 32, dropout: 0.1}\n"
        "tokenizer: {train: {vocab_size: 300}}\n"
        "generation: {max_length: 10}\n"
    )
    settings = load_settings(
        file, ["model.size=small", "tokenizer.name=gpt2"], {"generation": {"max_new_tokens": 5}}
    )
    model = settings.model
    assert (model.n_layer, model.n_embd, model.context_length) == (12, 768, 1024)
    assert model.dropout == 0.1
    assert (settings.tokenizer.name, settings.tokenizer.train) == ("gpt2", None)
    assert (settings.generation.max_new_tokens, settings.generation.max_length) == (5, None)


def test_options_that_exclude_each_other_are_refused() -> None:
    [line] = problems(None, generation={"max_new_tokens": 5, "max_length": 10})
    assert "exclude each other" in line


# Problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "training:\n  warmup_step: 5",
            "my.yaml:2: training.warmup_step is not a setting. Did you mean training.warmup_steps?",
        ),
        ("trainig:\n  max_steps: 5", "my.yaml:1: trainig is not a setting. Did you mean training?"),
        (
            "tokenizer: {tran: {}}",
            "my.yaml:1: tokenizer.tran is not a setting. Did you mean tokenizer.train?",
        ),
        (
            "\nlearning_rate: 0.1",
            "my.yaml:2: learning_rate is not a setting. Did you mean training.learning_rate?",
        ),
        (
            "training: {seed: 3}",
            "my.yaml:1: training.seed is not a setting. Did you mean runtime.seed?",
        ),
        (
            "training: {xyzzy: 3}",
            "my.yaml:1: training.xyzzy is not a setting. `docs/configuration.md` lists them all.",
        ),
        (
            "generation:\n  temperature: 0",
            "my.yaml:2: generation.temperature is 0; it must be more than 0. For the likeliest token "
            "each time (greedy decoding), set generation.top_k to 1 (--top-k 1).",
        ),
        (
            "training:\n  learning_rate: -1",
            "my.yaml:2: training.learning_rate is -1; it must be more than 0.",
        ),
        ("training: {batch_size: 0}", "my.yaml:1: training.batch_size is 0; it must be at least 1."),
        (
            "training: {batch_size: 2000000}",
            "my.yaml:1: training.batch_size is 2000000; it must be at most 1,000,000.",
        ),
        (
            "runtime: {seed: 4294967296}",
            "my.yaml:1: runtime.seed is 4294967296; it must be at most 4,294,967,295.",
        ),
        ("model: {dropout: 1}", "my.yaml:1: model.dropout is 1; it must be less than 1."),
        (
            "training: {max_steps: many}",
            "my.yaml:1: training.max_steps is 'many'; it must be a whole number.",
        ),
        (
            "training: {max_steps: 2.5}",
            "my.yaml:1: training.max_steps is 2.5; it must be a whole number.",
        ),
        (
            "training: {learning_rate: '1e-4'}",
            "my.yaml:1: training.learning_rate is '1e-4'; it must be a number.",
        ),
        (
            "training: {learning_rate: true}",
            "my.yaml:1: training.learning_rate is true; it must be a number.",
        ),
        (
            "training: {max_grad_norm: .inf}",
            "my.yaml:1: training.max_grad_norm is inf; it must be a finite number.",
        ),
        (
            "tokenizer: {name: ''}",
            "my.yaml:1: tokenizer.name is ''; it must be text that is not empty.",
        ),
        ("data: {encoding: }", "my.yaml:1: data.encoding is empty; it must be text."),
        ("data: {encoding: ''}", "my.yaml:1: data.encoding is ''; it must be text that is not empty."),
        (
            "runtime: {precision: fp8}",
            "my.yaml:1: runtime.precision is 'fp8'; it must be 'auto', 'fp32', 'bf16', 'fp16' or "
            "'int8'.",
        ),
        (
            "runtime: {device: gpu}",
            "my.yaml:1: runtime.device is 'gpu'; it must be auto, cpu, cuda, cuda:N or mps.",
        ),
        (
            "training: 5",
            "my.yaml:1: training is 5; it must be a section with settings under it.",
        ),
        (
            "\nmodel:\n  n_layer: 2\n  n_head: 3\n  n_embd: 32\n  context_length: 8",
            "my.yaml:2: model: n_embd 32 is not divisible by n_head 3: every head needs the same width.",
        ),
        (
            "task: instruction\ntask: instruction",
            "my.yaml:2: task is set twice, first on line 1.",
        ),
        ("- a\n- b", "my.yaml:1: a config is a mapping of sections, such as `training:`."),
        ("only words", "my.yaml:1: a config is a mapping of sections, such as `training:`."),
    ],
)
def test_a_problem_is_one_line_with_place_value_and_remedy(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert problems_of(tmp_path, text) == [expected]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    lines = problems_of(
        tmp_path,
        "training:\n  max_step: 5\n  batch_size: 0\nruntime:\n  device: tpu\nextra: 1\n",
    )
    assert sorted(line.split(" ")[0] for line in lines) == [
        "my.yaml:2:",
        "my.yaml:3:",
        "my.yaml:5:",
        "my.yaml:6:",
    ]


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    [line] = problems_of(tmp_path, f"training: {{max_steps: {'x' * 5000}}}")
    assert len(line) < 200


def test_a_key_with_a_line_feed_is_still_one_line(tmp_path: Path) -> None:
    [line] = problems_of(tmp_path, '"two\\nlines": 1')
    assert line.startswith("my.yaml:1: two lines is not a setting.")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.max_step=5", "training.max_step is not a setting. Did you mean training.max_steps?"),
        ("trainig.max_steps=5", "trainig is not a setting. Did you mean training?"),
        ("training.max_steps=five", "training.max_steps is 'five'; it must be a whole number."),
        ("training.max_steps=", "training.max_steps is empty; it must be a whole number."),
        ("training=5", "training is 5; it must be a section with settings under it."),
    ],
)
def test_a_problem_in_set_names_the_assignment(assignment: str, expected: str) -> None:
    assert problems(None, assignment) == [f"--set {assignment}: {expected}"]


@pytest.mark.parametrize("assignment", ["", "training.max_steps", "=5", ".=5", "a..b=1", "training.=1"])
def test_set_without_a_name_or_value_says_how_to_write_it(assignment: str) -> None:
    assert problems(None, assignment) == [f"--set {assignment}: write it as section.key=value."]


def test_set_of_what_is_no_yaml_is_refused() -> None:
    [line] = problems(None, "data.source=[a.txt")
    assert line.startswith("--set data.source=[a.txt: it is not valid YAML")


def test_a_problem_in_an_option_names_the_option(config: Path) -> None:
    [line] = problems(config, generation={"max_new_tokens": 0})
    assert line == "--max-new-tokens: generation.max_new_tokens is 0; it must be at least 1."


def test_an_option_of_a_section_that_is_none_reports_the_section() -> None:
    [line] = problems(None, "generation=5", generation={"temperature": 0.5})
    assert line == "--set generation=5: generation is 5; it must be a section with settings under it."


def test_a_file_that_is_no_config_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"abc\xff\xfe")
    assert problems(tmp_path / "no.yaml") == [f"{tmp_path}/no.yaml: no such config file."]
    assert problems(tmp_path) == [f"{tmp_path} is a folder; --config takes a YAML file."]
    assert problems(binary) == [f"{binary} is not a text file: byte 3 is not UTF-8."]
    assert problems(binary / "x.yaml") == [f"{binary}/x.yaml cannot be read: Not a directory."]


# The environment


def from_environment(config: Path | None = None, *assignments: str, **variables: Any) -> Any:
    """Return the settings that GPTCLI_ variables, named without it, make of a config."""
    environment = {f"GPTCLI_{name}": value for name, value in variables.items()}
    return load_settings(config, assignments, environment=environment)


def problems_of_variables(**variables: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        from_environment(**variables)
    return str(error.value).splitlines()


def test_the_environment_wins_over_the_file_and_set_over_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("runtime: {seed: 1, threads: 1, device: cpu}\n")
    settings = from_environment(
        file, "runtime.threads=3", RUNTIME__SEED="2", RUNTIME__THREADS="2", RUNTIME__PRECISION="fp32"
    )
    assert settings.runtime.device == "cpu"  # the file
    assert (settings.runtime.seed, settings.runtime.precision) == (2, "fp32")  # the environment
    assert settings.runtime.threads == 3  # --set


def test_variables_of_this_process_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_RUNTIME__SEED", "7")
    assert load_settings(None).runtime.seed == 7


def test_a_variable_reaches_any_depth_and_reads_its_value_as_yaml() -> None:
    settings = from_environment(
        TRAINING__LORA__RANK="4",
        TRAINING__LEARNING_RATE="1e-4",
        DATA__SOURCE="[a.txt, b.txt]",
        TASK="classification",
        MODEL="tiny",
        TOKENIZER__TRAIN__VOCAB_SIZE="1_000",
        GENERATION__TEMPERATURE="null",
    )
    assert settings.training.lora.rank == 4
    assert settings.training.learning_rate == 1e-4
    assert settings.data.source == ["a.txt", "b.txt"]
    assert (settings.task, settings.model.size) == ("classification", "tiny")
    assert settings.tokenizer.train.vocab_size == 1000
    assert settings.generation.temperature is None


def test_a_variable_takes_the_place_of_what_excludes_it(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("training: {epochs: 3}\ntokenizer: gpt2\ngeneration: {max_length: 9}\n")
    settings = from_environment(
        file, TRAINING__MAX_STEPS="5", TOKENIZER__TRAIN__VOCAB_SIZE="300", GENERATION__MAX_NEW_TOKENS="4"
    )
    assert (settings.training.epochs, settings.training.max_steps) == (None, 5)
    assert settings.tokenizer.name is None
    assert (settings.generation.max_length, settings.generation.max_new_tokens) == (None, 4)


@pytest.mark.parametrize("variable", ["DEBUG", "HOME", "FOO__BAR", "TRAINING_X", "DATASET"])
def test_variables_that_are_no_settings_are_left_alone(variable: str) -> None:
    variables: dict[str, Any] = {variable: "1"}
    assert from_environment(**variables) == Settings()


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("TRAINING__MAX_STEPS", "five", "training.max_steps is 'five'; it must be a whole number."),
        (
            "TRAINING__MAX_STEP",
            "5",
            "training.max_step is not a setting. Did you mean GPTCLI_TRAINING__MAX_STEPS?",
        ),
        (
            "TRAINING__LORA__RANKS",
            "5",
            "training.lora.ranks is not a setting. Did you mean GPTCLI_TRAINING__LORA__RANK?",
        ),
        (
            "TRAINING__NUM_TRAIN_EPOCHS",
            "5",
            "training.num_train_epochs is not a setting. Use GPTCLI_TRAINING__EPOCHS instead.",
        ),
        (
            "TRAINING__OUTPUT_DIR",
            "x",
            "training.output_dir is not a setting. Use --output-dir instead.",
        ),
        ("TRAINIG__MAX_STEPS", "5", "trainig is not a setting. Did you mean GPTCLI_TRAINING?"),
        ("TRAINING", "5", "training is 5; it must be a section with settings under it."),
        (
            "TRAINING_MAX_STEPS",
            "5",
            "it sets nothing. Use GPTCLI_TRAINING__MAX_STEPS, with two underscores.",
        ),
        ("RUNTIME__SEED", "{", "it is not valid YAML"),
    ],
)
def test_a_problem_in_a_variable_names_the_variable(variable: str, value: str, problem: str) -> None:
    [line] = problems_of_variables(**{variable: value})
    assert line.startswith(f"GPTCLI_{variable}: {problem}")


# Where a value came from


def origins(config: Path | None, *assignments: str, **variables: str) -> dict[str, str]:
    """Return {setting: place} for the settings that have not their default."""
    environment = {f"GPTCLI_{name}": value for name, value in variables.items()}
    resolved = resolve_settings(config, assignments, environment=environment)
    places = {name: str(resolved.origin(name)) for name in setting_names()}
    return {name: place for name, place in places.items() if place != "default"}


def test_every_value_knows_its_layer_and_place(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "training:\n  max_steps: 5\n  batch_size: 4\n  weight_decay: 0\nruntime:\n  seed: 1\n"
    )
    assert origins(file, "training.batch_size=8", RUNTIME__SEED="2") == {
        "training.max_steps": f"{file}:2",
        "training.batch_size": "--set training.batch_size=8",
        "training.weight_decay": f"{file}:4",
        "runtime.seed": "GPTCLI_RUNTIME__SEED",
    }


def test_what_a_size_brings_has_the_origin_of_the_size(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("tokenizer: gpt2\nmodel: tiny\n")
    shape = ("model.size", "model.n_layer", "model.n_head", "model.n_embd", "model.context_length")
    assert origins(file) == {**dict.fromkeys(shape, f"{file}:2"), "tokenizer.name": f"{file}:1"}
    assert origins(None) == {}


def test_what_a_stronger_layer_drops_has_no_origin(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("training: {epochs: 3, batch_size: 4}\nmodel: {n_layer: 2, dropout: 0.1}\n")
    changes = ["training={max_steps: 7}", "model=mini"]
    found = origins(file, *changes)
    assert found["training.max_steps"] == "--set training={max_steps: 7}"
    assert found["model.n_layer"] == "--set model=mini"
    assert not {"training.epochs", "training.batch_size", "model.dropout"} & found.keys()


def test_settings_are_counted_by_layer(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: tiny\ntraining: {max_steps: 5, batch_size: 4}\n")
    resolved = resolve_settings(
        file, ["training.batch_size=8"], environment={"GPTCLI_RUNTIME__SEED": "2"}
    )
    counts = resolved.count_by_layer()
    assert sum(counts.values()) == len(setting_names())
    assert {layer: count for layer, count in counts.items() if layer != "default"} == {
        "file": 2,
        "environment": 1,
        "--set": 1,
        "option": 0,
    }


# All at once


def test_what_is_wrong_between_settings_shows_beside_what_is_wrong_in_them(tmp_path: Path) -> None:
    lines = problems_of(
        tmp_path,
        "training:\n  batch_size: 4\n  batch_size: 4\n  micro_batch_size: 8\n  max_step: 5\n"
        "  learning_rate: 100\n",
    )
    assert lines == [
        "my.yaml:1: training: micro_batch_size 8 is more than batch_size 4.",
        "my.yaml:3: training.batch_size is set twice, first on line 2.",
        "my.yaml:5: training.max_step is not a setting. Did you mean training.max_steps?",
        "my.yaml:6: training.learning_rate is 100; it must be at most 10.",
    ]


def test_a_wrong_value_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    [line] = problems_of(tmp_path, "model: {n_layer: 2, n_head: x, n_embd: 32, context_length: 8}")
    assert line == "my.yaml:1: model.n_head is 'x'; it must be a whole number."
    [line] = problems_of(tmp_path, "training: {micro_batch_size: 64, batch_size: x}")
    assert line == "my.yaml:1: training.batch_size is 'x'; it must be a whole number."


def test_problems_of_all_layers_are_reported_together(config: Path) -> None:
    config.write_text("runtime: {device: tpu}\n")
    with pytest.raises(ConfigError) as error:
        from_environment(config, "training.max_steps", "training.batch_size=0", RUNTIME__SEED="[")
    layers = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert layers == [
        str(config),
        "GPTCLI_RUNTIME__SEED",
        "--set training.max_steps",
        "--set training.batch_size=0",
    ]


# Names of other tools


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # Hugging Face's TrainingArguments, run_clm.py and GPT2Config
        ("per_device_train_batch_size", "training.batch_size"),
        ("gradient_accumulation_steps", "training.micro_batch_size"),
        ("num_train_epochs", "training.epochs"),
        ("logging_steps", "logging.log_steps"),
        ("save_total_limit", "training.keep_checkpoints"),
        ("block_size", "model.context_length"),
        ("n_positions", "model.context_length"),
        ("train_file", "data.source"),
        ("validation_split_percentage", "data.validation_fraction"),
        ("output_dir", "--output-dir"),
        ("bf16", "runtime.precision"),
        ("report_to", "logging.trackers"),
        # nanoGPT's train.py
        ("max_iters", "training.max_steps"),
        ("warmup_iters", "training.warmup_steps"),
        ("eval_interval", "evaluation.eval_steps"),
        ("log_interval", "logging.log_steps"),
        ("grad_clip", "training.max_grad_norm"),
        ("min_lr", "training.min_learning_rate_ratio"),
        ("beta2", "training.adam_beta2"),
        ("dtype", "runtime.precision"),
        ("out_dir", "--output-dir"),
        ("wandb_log", "logging.trackers"),
        ("wandb_project", "logging.project"),
        # litgpt's TrainArgs
        ("global_batch_size", "training.batch_size"),
        ("lr_warmup_steps", "training.warmup_steps"),
        ("max_norm", "training.max_grad_norm"),
        ("max_time", "training.max_minutes"),
        ("tokenizer_dir", "tokenizer.name"),
    ],
)
@pytest.mark.parametrize("section", ["", "training."])
def test_other_tools_names_are_answered_with_ours(theirs: str, ours: str, section: str) -> None:
    [line] = problems(None, f"{section}{theirs}=1")
    assert line.endswith(f"{section}{theirs} is not a setting. Use {ours} instead.")


@pytest.mark.parametrize("theirs", ["learning_rate", "weight_decay", "n_head", "device", "eval_steps"])
def test_names_that_we_share_are_answered_with_their_section(theirs: str) -> None:
    [line] = problems(None, f"{theirs}=1")
    [ours] = [name for name in setting_names() if name.endswith(f".{theirs}")]
    assert line.endswith(f"Did you mean {ours}?")


def test_every_foreign_name_leads_to_a_setting_and_is_none_itself() -> None:
    names = setting_names()
    options = ("--output-dir", "--overwrite", "--resume")
    assert {ours for ours in FOREIGN_NAMES.values() if ours not in names} == set(options)
    assert not FOREIGN_NAMES.keys() & {name.rpartition(".")[2] for name in names}


# The resolved config


@pytest.mark.parametrize(
    "assignments",
    [
        [],
        ["model=small", "tokenizer=gpt2"],
        [
            "model.size=tiny",
            "model.n_layer=3",
            "tokenizer.train.vocab_size=300",
            "training.learning_rate=1e-7",
        ],
        ["data.source=[a.txt, 'no', 'é 中文 😀']", "data.validation_source=b.txt"],
        ["generation.top_p=0.9", "runtime.threads=2", "training.micro_batch_size=2"],
    ],
)
def test_a_dump_reads_back_to_equal_settings(tmp_path: Path, assignments: list[str]) -> None:
    settings = load_settings(None, assignments)
    file = tmp_path / "config.yaml"
    file.write_text(dump_settings(settings), encoding="utf-8")
    assert load_settings(file) == settings


def test_a_dump_of_a_file_reads_back_to_equal_settings(config: Path, tmp_path: Path) -> None:
    settings = load_settings(config)
    file = tmp_path / "config.yaml"
    file.write_text(dump_settings(settings), encoding="utf-8")
    assert load_settings(file) == settings


number_like = st.from_regex(r"[-+]?[0-9._eE]{1,8}", fullmatch=True)
words = st.sampled_from(["null", "true", "no", "~", "=", "<<", ".nan", "0x1", "1:30", "2024-01-31"])


@hypothesis_settings(deadline=None, derandomize=True)
@given(
    # No path and no column name holds NUL or half a surrogate pair.
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
    | number_like
    | words,
    rate=st.floats(min_value=0, max_value=10, exclude_min=True),
)
def test_any_text_and_number_survives_a_dump(
    tmp_path_factory: pytest.TempPathFactory, text: str, rate: float
) -> None:
    settings = Settings.model_validate(
        {
            "data": {"source": [text, text], "columns": {"text": text}, "hub_subset": text},
            "training": {"learning_rate": rate},
        }
    )
    file = tmp_path_factory.getbasetemp() / "dumped.yaml"
    file.write_text(dump_settings(settings), encoding="utf-8")
    assert load_settings(file) == settings


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("a: b", "'a: b'"),
        ("1e3", '"1e3"'),
        (["a", "b"], "[a, b]"),
        ({"spam": 2.0}, "{spam: 2.0}"),
        ("two\nlines", '"two\\nlines"'),
        ("x " * 200 + "x", "x " * 200 + "x"),
    ],
)
def test_a_value_is_dumped_on_one_line(value: object, text: str) -> None:
    assert dump_value(value) == text


# Fuzzing


def mutated(text: str, draw: random.Random) -> str:
    """Return `text` with one to four characters or lines deleted, doubled, swapped or replaced."""
    for _ in range(draw.randint(1, 4)):
        separator = draw.choice(["", "\n"])
        parts = text.split("\n") if separator else list(text)
        if not parts:
            break
        at, other = draw.randrange(len(parts)), draw.randrange(len(parts))
        match draw.randrange(4):
            case 0:
                del parts[at]
            case 1:
                parts.insert(other, parts[at])
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at] = draw.choice(
                    [*"{}[]:,-#&*!|>'\"%@`?~.0\t\\", "\x00", "\ud800", "é", "1e9", "- "]
                )
        text = separator.join(parts)
    return text


@pytest.mark.parametrize("seed", range(300))
def test_a_damaged_config_gives_settings_or_a_clear_error(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "my.yaml"
    file.write_bytes(mutated(VALID, random.Random(seed)).encode("utf-8", "surrogatepass"))
    try:
        settings = load_settings(file)
    except ConfigError as error:
        unplaced = [line for line in str(error).splitlines() if not line.startswith(str(file))]
    else:
        unplaced = []
        assert Settings.model_validate(setting_values(settings)) == settings
    assert unplaced == []
