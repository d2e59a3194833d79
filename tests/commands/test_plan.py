"""`gptcli plan`: what a training needs, said without loading anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import Run, refused
from tests.pipelines.test_train import read_json

HEAVY = ("torch", "transformers", "datasets")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "CONFIG"],
        ["--size", "124M", "--tflops", "1"],
        ["--hours", "1", "--tflops", "1", "--memory", "8", "--data", "builtin:python-docs"],
    ],
)
def test_it_imports_none_of_the_large_libraries(config_file: Path, arguments: list[str]) -> None:
    program = (
        "import sys; from gptcli.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    words = [str(config_file) if word == "CONFIG" else word for word in arguments]
    command = [sys.executable, "-c", program, "plan", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_it_says_what_the_run_then_has(run: Run, config_file: Path, tmp_path: Path) -> None:
    trained = run("pretrain", "--config", config_file, "--output-dir", "run")
    assert trained.code == 0, trained.stderr
    planned = run("plan", "--config", config_file, "--json")
    assert planned.code == 0, planned.stderr
    (plan,) = planned.rows
    facts = read_json(tmp_path / "run" / "run.json")
    ledger = read_json(tmp_path / "run" / "data.json")
    assert plan["parameters"] == facts["parameters"]
    # The text has been prepared: its tokens are counted.
    assert plan["text"]["is_counted"]
    assert plan["text"]["train_tokens"] == ledger["train"]["tokens"]
    assert plan["tokens"] == 6 * 4 * 32
    assert sum(plan["parameter_parts"].values()) == plan["parameters"]


def test_measuring_times_real_steps_and_writes_no_run(
    run: Run, config_file: Path, tmp_path: Path
) -> None:
    result = run("plan", "--config", config_file, "--measure", "--json")
    assert result.code == 0, result.stderr
    (plan,) = result.rows
    assert plan["seconds"] > 0
    assert plan["tokens_per_second"] > 0
    assert plan["text"]["is_counted"]
    assert not (tmp_path / "runs").exists()


def test_the_best_size_is_measured_where_it_is_asked_for(run: Run) -> None:
    result = run("plan", "--hours", "0.0001", "--measure", "--json")
    assert result.code == 0, result.stderr
    (plan,) = result.rows
    assert plan["settings"]["model"]["n_embd"] == plan["n_embd"] == 64
    assert plan["tokens_per_second"] > 0


def test_people_see_tables_and_sentences_of_at_most_80_columns(run: Run, config_file: Path) -> None:
    result = run("plan", "--config", config_file)
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "A new GPT-2: 2 layers, 2 heads, 32 wide, 32 tokens of context"
    for title in ("Parameters", "Training, on cpu in fp32", "Memory"):
        assert title in lines
    assert max(map(len, lines)) <= 80
    assert "- The training has" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "What is to be planned? Give --config FILE, or --size N, or"),
        (["--size", "huge"], "--size is huge; it must be a number such as 124M"),
        (["--hours", "8"], "--hours needs the speed of the machine"),
        (["--hours", "-1", "--tflops", "1"], "--hours is -1; it must be more than 0."),
        (["--size", "small", "--config", "x.yaml"], "--config and --size exclude each other."),
        (["--data", "a", "--data-megabytes", "1"], "--data and --data-megabytes exclude each other."),
        (["--measure", "--tflops", "1", "--size", "tiny"], "--measure and --tflops exclude each other."),
        (["--size", "tiny", "--set", "model=mini"], "--set and --model change a config"),
        (["--data", "wikitext"], "--data is wikitext, which is not here"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    run: Run, arguments: list[str], message: str
) -> None:
    assert refused(run("plan", *arguments), 2).startswith(message)


def test_a_model_that_is_not_here_is_refused(run: Run, config_file: Path) -> None:
    result = run("plan", "--config", config_file, "--model", "somebody/something")
    assert "is no folder here and not in the hub cache" in refused(result, 4)
