"""`gptcli config`: configs to start from, what a config comes to, whether it is right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from gptcli.config.json_schema import json_schema
from gptcli.config.loading import load_settings
from gptcli.config.names import setting_names
from gptcli.config.schema import RuntimeSettings
from gptcli.training.device import choose_compute
from tests.commands.conftest import Run, refused

SMALL = """\
model: tiny
data: {source: text.txt}
training:
  max_steps: 5
  batch_size: 4
"""
# Configs that are made are run on less work.
LESS_WORK = [
    "training.max_steps=2",
    "training.batch_size=2",
    "training.warmup_steps=1",
    "model=tiny",
    "model.context_length=32",
    "tokenizer.train.vocab_size=300",
    "evaluation.eval_steps=2",
    "evaluation.max_tokens=500",
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "text.txt").write_text("A text.\n")
    return Path("small.yaml")


# init


@pytest.mark.parametrize("task", ["language-modelling", "classification"])
def test_a_config_to_start_from_runs_as_it_is(run: Run, task: str) -> None:
    made = run("config", "init", task, "--output", "my.yaml")
    assert (made.code, made.stdout) == (0, "")
    assert made.notes[-2:] == ["  gptcli config validate my.yaml", "  gptcli config show my.yaml"]
    assert run("config", "validate", "my.yaml").notes == []
    changes = [word for change in LESS_WORK for word in ("--set", change)]
    # The commands that its header shows.
    shown = re.findall(r"^#   gptcli (.*)$", Path("my.yaml").read_text(), re.MULTILINE)
    for command in shown:
        if "MODEL" not in command:
            done = run(*command.split(), *changes)
            assert done.code == 0, done.stderr
    assert Path("runs/my/model/model.safetensors").is_file()
    # On the text that it names, not on less.
    planned = run(*shown[0].split(), "--output-dir", "runs/planned", "--dry-run")
    assert planned.code == 0, planned.stderr


@pytest.mark.parametrize("task", ["question-answering", "instruction"])
def test_one_for_data_of_the_user_says_that_it_is_missing(run: Run, task: str) -> None:
    run("config", "init", task, "--output", "my.yaml")
    checked = run("config", "validate", "my.yaml")
    assert checked.code == 0
    [warning] = checked.notes
    assert re.match(r"Warning: my.yaml:\d+: data.source: \w+.json is not there, seen from /", warning)


def test_it_is_for_this_machine_and_brings_the_schema_along(run: Run) -> None:
    made = run("config", "init", "instruction", "-o", "my.yaml", "--json")
    [result] = made.rows
    compute = choose_compute(RuntimeSettings(), for_training=True)
    assert (result["device"], result["precision"]) == (str(compute.device), compute.precision)
    assert result["output"] == "my.yaml"
    assert Path("my.yaml").read_text() == result["config"]
    runtime = load_settings(Path("my.yaml")).runtime
    assert (runtime.device, runtime.precision) == (result["device"], result["precision"])
    first = result["config"].splitlines()[0]
    assert first == "# yaml-language-server: $schema=gptcli.schema.json"
    assert json.loads(Path("gptcli.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("option", [[], ["--output", "-"]])
def test_without_a_file_it_goes_to_stdout_alone(run: Run, tmp_path: Path, option: list[str]) -> None:
    made = run("config", "init", "classification", *option)
    assert (made.code, made.stderr, list(tmp_path.iterdir())) == (0, "", [])
    Path("my.yaml").write_text(made.stdout)
    assert load_settings(Path("my.yaml")).task == "classification"


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(run: Run) -> None:
    Path("my.yaml").write_text("task: instruction\n")
    again = ("config", "init", "classification", "--output", "my.yaml")
    assert refused(run(*again), 2) == "my.yaml already exists. Use --overwrite to replace it."
    assert Path("my.yaml").read_text() == "task: instruction\n"
    assert not Path("gptcli.schema.json").exists()
    assert run(*again, "--overwrite").code == 0
    assert load_settings(Path("my.yaml")).task == "classification"


def test_init_refuses_what_it_cannot_do(run: Run) -> None:
    assert refused(run("config", "init", "pretrain"), 2) == (
        "'pretrain' is no task; there are language-modelling, classification, question-answering, "
        "instruction. Pretraining is of task language-modelling."
    )
    nowhere = run("config", "init", "instruction", "--output", "no/my.yaml")
    assert refused(nowhere, 2) == "--output no/my.yaml: the folder no does not exist."


# show


def test_show_prints_a_config_with_the_origin_of_each_setting(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTCLI_RUNTIME__SEED", "7")
    changes = ("--set", "training.batch_size=8")
    shown = run("config", "show", config, *changes)
    assert (shown.code, shown.stderr) == (0, "")
    origins = dict(re.findall(r"^ *(\w+): .*?  # (.*)$", shown.stdout, re.MULTILINE))
    assert origins["max_steps"] == "small.yaml:4"
    assert origins["batch_size"] == "--set training.batch_size=8"
    assert origins["seed"] == "environment: GPTCLI_RUNTIME__SEED"
    assert origins["n_layer"] == origins["size"] == "small.yaml:1"
    assert origins["precision"] == "default"
    Path("shown.yaml").write_text(shown.stdout)
    monkeypatch.delenv("GPTCLI_RUNTIME__SEED")
    expected = load_settings(config, ["training.batch_size=8", "runtime.seed=7"])
    assert load_settings(Path("shown.yaml")) == expected


def test_show_as_json_has_the_same(run: Run, config: Path) -> None:
    [shown] = run("config", "show", "--config", config, "--json").rows
    assert shown["config"] == "small.yaml"
    assert shown["settings"]["training"]["max_steps"] == 5
    assert shown["origins"]["training.max_steps"] == {
        "layer": "file",
        "place": "small.yaml:4",
        "line": 4,
    }
    assert shown["origins"]["runtime.seed"]["layer"] == "default"
    # What is in no section has no origin.
    assert set(setting_names()) - shown["origins"].keys() == {
        name for name in setting_names() if name.startswith("training.lora.")
    }
    jsonschema.validate(shown["settings"], json_schema())


def test_show_without_a_file_shows_the_defaults(run: Run) -> None:
    shown = run("config", "show")
    assert shown.code == 0
    settings = [line for line in shown.stdout.splitlines() if not line.endswith(":")]
    assert all(line.endswith("  # default") for line in settings)


def test_show_reports_problems_and_takes_one_file(run: Run, config: Path) -> None:
    refusal = refused(run("config", "show", config, "--set", "training.max_step=1"), 2)
    assert refusal.startswith("--set training.max_step=1: training.max_step is not a setting.")
    both = run("config", "show", config, "--config", config)
    assert refused(both, 2) == "Give FILE or --config, not both."


# validate


def test_a_config_without_problems_is_fine(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = len(setting_names())
    checked = run("config", "validate", config)
    assert checked == (
        f"small.yaml is fine: 4 settings are set in it, {names - 4} have their default.\n",
        "",
        0,
    )
    assert run("config", "validate", "--config", config) == checked
    monkeypatch.setenv("GPTCLI_RUNTIME__SEED", "7")
    changed = run("config", "validate", config, "--set", "training.batch_size=8")
    assert changed.stdout == (
        "small.yaml is fine: 3 settings are set in it, 1 by the environment, 1 by --set, "
        f"{names - 5} have their default.\n"
    )


def test_all_problems_are_reported_with_their_lines(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("training:\n  max_step: 5\n  batch_size: 0\nextra: 1\n")
    monkeypatch.setenv("GPTCLI_RUNTIME__SEEDS", "7")
    checked = run("config", "validate", config)
    assert (checked.code, checked.stdout) == (2, "")
    assert [line.split(" ")[:2] for line in checked.notes] == [
        ["Error:", "small.yaml:2:"],
        ["Error:", "small.yaml:3:"],
        ["Error:", "small.yaml:4:"],
        ["Error:", "GPTCLI_RUNTIME__SEEDS:"],
    ]
    as_json = run("config", "validate", config, "--json")
    [row] = as_json.rows
    assert as_json.code == 2
    assert (row["config"], row["ok"]) == ("small.yaml", False)
    assert [f"Error: {problem}" for problem in row["problems"]] == checked.notes


def test_several_files_are_checked_in_one_go(run: Run, config: Path) -> None:
    Path("bad.yaml").write_text("training: {max_steps: 0}\n")
    checked = run("config", "validate", config, "bad.yaml", "no.yaml", "--json")
    assert checked.code == 2
    assert [(row["config"], row["ok"]) for row in checked.rows] == [
        ("small.yaml", True),
        ("bad.yaml", False),
        ("no.yaml", False),
    ]
    assert checked.notes == [
        "Error: bad.yaml:1: training.max_steps is 0; it must be at least 1.",
        "Error: no.yaml: no such config file.",
    ]


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("no.txt", ["no.txt"]),
        ("[text.txt, no/, 'no/*.txt']", ["no/", "no/*.txt"]),
        ("'*.txt'", []),
        ("builtin:python-docs", []),
        ("some/dataset", []),  # On the hub, perhaps.
    ],
)
def test_data_that_is_not_there_is_a_warning(
    run: Run, config: Path, tmp_path: Path, source: str, missing: list[str]
) -> None:
    config.write_text(f"data: {{source: {source}}}\n")
    checked = run("config", "validate", config)
    assert checked.code == 0
    assert checked.notes == [
        f"Warning: small.yaml:1: data.source: {path} is not there, seen from {tmp_path}."
        for path in missing
    ]


def test_validate_without_a_file_says_how(run: Run) -> None:
    assert refused(run("config", "validate"), 2) == (
        "Give the config to check: gptcli config validate FILE."
    )


# schema


def test_schema_is_printed_for_people_and_on_one_line(run: Run) -> None:
    shown = run("config", "schema")
    assert json.loads(shown.stdout) == json_schema()
    assert run("config", "schema", "--json").rows == [json_schema()]
