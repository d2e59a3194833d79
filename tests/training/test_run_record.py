from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import ConfigError, ModelError
from gptcli.training.run_folder import RunFolder
from gptcli.training.run_record import RunRecord, find_run
from tests.reports.run_folders import run_facts, write_run


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = RunRecord(write_run(tmp_path / "run"))
    assert (run.name, run.state, run.reason) == ("run", "finished", "training.max_steps")
    assert run.facts.main_score == ("bits_per_byte", 1.25)
    assert run.settings is not None
    assert run.settings.training.max_steps == 1000
    assert run.ledger["reading"]["documents"] == 3
    assert [line["step"] for line in run.metrics.steps] == list(range(1, 101))
    assert [line["step"] for line in run.metrics.evaluations] == [25, 50, 75, 100]
    assert [sample.step for sample in run.metrics.samples] == [25, 50, 75, 100]
    assert run.metrics.samples[0].texts == [("Once upon a time", " text of 25")]
    assert run.best_evaluation_line is run.metrics.evaluations[-1]
    assert run.repeating_command == ["gptcli", "pretrain", "--config", f"{tmp_path}/run/config.yaml"]


def test_a_run_that_was_not_started_by_a_training_command_is_repeated_by_finetune(
    tmp_path: Path,
) -> None:
    run = RunRecord(write_run(tmp_path / "run", command=["program.py"]))
    assert run.repeating_command[1] == "finetune"


def test_what_says_running_is_killed_unless_its_process_is_there(tmp_path: Path) -> None:
    run = RunRecord(write_run(tmp_path / "run", ended="running"))
    assert run.state == "killed"
    with RunFolder(run.path).lock():
        assert run.state == "running"
    assert run.state == "killed"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "no JSON"),
        ('{"task": ', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "its content"),
        ("{}", "command"),
        (json.dumps(run_facts(parameters="many")), "parameters"),
        (json.dumps(run_facts(updated="yesterday")), "updated"),
        (json.dumps(run_facts(best_evaluation={"loss": float("nan")})), "best_evaluation.loss"),
    ],
)
def test_a_damaged_run_is_said_to_be_one(tmp_path: Path, content: str, problem: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(ModelError, match=f"run.json is damaged: .*{problem}"):
        RunRecord(tmp_path / "run")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None])
def test_what_is_no_run_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds no run: run\.json is not there"):
        RunRecord(tmp_path / "run")


def test_a_run_is_found_by_its_name_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs") / "mine")
    assert find_run("mine").path == Path("runs/mine")
    assert find_run("runs/mine").path == Path("runs/mine")
