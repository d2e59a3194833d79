"""Signals at any moment: the exit code says so, the step is saved, the resumed run is exact."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, SIGUSR1

import pytest

from tests.conftest import REPOSITORY
from tests.reliability.conftest import CommandServer, Ended
from tests.reliability.runs import (
    STEPS,
    RunSettings,
    assert_all_checkpoints_are_whole,
    assert_same_run,
    file_names,
    metrics_of,
)

EXIT_CODES = {SIGTERM: 75, SIGUSR1: 75, SIGHUP: 75, SIGINT: 130}
NAMES = {SIGTERM: "SIGTERM", SIGUSR1: "SIGUSR1", SIGHUP: "SIGHUP", SIGINT: "Ctrl-C"}
# What runs in the middle of a step.
STEP = "accumulate_gradients"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    settings = RunSettings(tmp_path_factory.mktemp("signals"))
    settings.write()
    return settings


@pytest.fixture(scope="module")
def whole(settings: RunSettings, server: CommandServer) -> Path:
    """The run that nothing interrupted."""
    folder = settings.root / "whole"
    assert settings.run(server, folder).exit_code == 0
    return folder


@pytest.fixture
def run(settings: RunSettings, whole: Path, tmp_path: Path) -> Path:
    return settings.root / tmp_path.name


def resume_and_compare(server: CommandServer, settings: RunSettings, run: Path, whole: Path) -> None:
    resumed = settings.run(server, run, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "Warning" not in resumed.output
    assert_same_run(run, whole)


@pytest.mark.parametrize("number", EXIT_CODES, ids=lambda number: signal.Signals(number).name)
def test_a_signal_in_any_step_saves_that_step_and_the_resumed_run_is_exact(
    server: CommandServer, settings: RunSettings, run: Path, whole: Path, number: signal.Signals
) -> None:
    for step in range(1, STEPS + 1):
        options = ["--resume"] if step > 1 else []
        first_step = {"call": STEP, "count": 1}
        ended = settings.run(server, run, *options, trigger=first_step, signals=[number])
        assert ended.exit_code == EXIT_CODES[number], ended.output
        assert f"\n{NAMES[number]}: stopping as soon as nothing is lost" in ended.output
        last_line = ended.output.splitlines()[-1]
        assert last_line.startswith(f"Stopped by {NAMES[number]} after step {step}; it is saved.")
        command = shlex.split(last_line.partition("Continue with: ")[2])
        assert command[:2] == ["gptcli", "pretrain"] and command.count("--resume") == 1
        assert ended.saved == [f"step-{step:08d}"]
        assert (run / "checkpoints" / ended.saved[0] / "manifest.json").exists()
        assert_all_checkpoints_are_whole(run)
    resume_and_compare(server, settings, run, whole)
    again = settings.run(server, run, "--resume")
    assert (again.exit_code, again.saved) == (0, [])
    assert "already finished" in again.output


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("prepare_text", SIGHUP),
        ("train_tokenizer", SIGTERM),
        ("encode_batch", SIGUSR1),
        ("encode_batch", SIGINT),
    ],
)
def test_a_signal_during_data_preparation_ends_it_and_the_same_command_runs_again(
    server: CommandServer,
    settings: RunSettings,
    run: Path,
    whole: Path,
    stage: str,
    number: signal.Signals,
) -> None:
    settings.forget_preparation()
    ended = settings.run(server, run, trigger={"call": stage, "count": 1}, signals=[number])
    assert ended.exit_code == EXIT_CODES[number], ended.output
    assert ended.output.endswith(
        f"Stopped by {NAMES[number]} before training; run the same command again.\n"
    )
    assert file_names(settings.cache) == []
    assert settings.run(server, run).exit_code == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("score_text", SIGTERM),
        ("save_model", SIGINT),
        ("save_checkpoint", SIGUSR1),
        ("rotate_checkpoints", SIGHUP),
    ],
)
def test_a_signal_during_evaluation_or_saving_loses_nothing(
    server: CommandServer,
    settings: RunSettings,
    run: Path,
    whole: Path,
    stage: str,
    count: int,
    number: signal.Signals,
) -> None:
    ended = settings.run(server, run, trigger={"call": stage, "count": count}, signals=[number])
    assert ended.exit_code == EXIT_CODES[number], ended.output
    assert_all_checkpoints_are_whole(run)
    resume_and_compare(server, settings, run, whole)


@pytest.mark.parametrize(
    ("stage", "count"),
    [
        ("prepare_text", 1),
        (STEP, 4),
        ("score_text", 2),
        ("save_model", 1),
        ("replace_file", 9),
        ("save_checkpoint", 3),
        ("rotate_checkpoints", 3),
        ("rmtree", 9),
    ],
)
def test_a_second_ctrl_c_ends_at_once_and_nothing_is_corrupt(
    server: CommandServer, settings: RunSettings, run: Path, whole: Path, stage: str, count: int
) -> None:
    trigger = {"call": stage, "count": count}
    ended = settings.run(server, run, trigger=trigger, signals=[SIGINT, SIGINT])
    assert ended.exit_code == 130, ended.output
    assert ended.output.endswith("Interrupted.\n")
    assert_all_checkpoints_are_whole(run)
    assert settings.run(server, run, "--resume").exit_code == 0
    assert_same_run(run, whole)


@pytest.mark.slow
def test_a_second_ctrl_c_before_any_file_operation_corrupts_nothing(
    server: CommandServer, settings: RunSettings, run: Path, whole: Path
) -> None:
    operations = settings.run(server, settings.root / "counted").file_events
    codes = set()
    for operation in range(1, operations, 3):
        folder = run / str(operation)
        trigger = {"file_event": operation}
        codes.add(settings.run(server, folder, trigger=trigger, signals=[SIGINT, SIGINT]).exit_code)
        assert_all_checkpoints_are_whole(folder)
        assert settings.run(server, folder, "--resume").exit_code == 0
        assert_same_run(folder, whole)
    assert codes == {130}


@pytest.fixture
def stopped_in_step_3(server: CommandServer, settings: RunSettings, run: Path) -> Ended:
    """A run that stands still in its third step, saving and evaluating at its end only."""
    options = ["--set", "training.save_steps=100"]
    trigger = {"call": STEP, "count": 3}
    stopped = settings.run(server, run, *options, trigger=trigger, signals=[SIGSTOP])
    assert stopped.exit_code is None
    return stopped


def test_touching_save_now_saves_a_checkpoint_after_the_current_step(
    server: CommandServer, run: Path, whole: Path, stopped_in_step_3: Ended
) -> None:
    (run / "save-now").touch()
    ended = server.let_go_on(stopped_in_step_3)
    assert ended.exit_code == 0
    assert ended.saved == ["step-00000003", f"step-{STEPS:08d}"]
    assert not (run / "save-now").exists()
    assert metrics_of(run) == metrics_of(whole)


@pytest.mark.parametrize("option", [[], ["--resume"], ["--overwrite"]], ids=str)
def test_a_second_process_in_a_run_folder_is_refused_and_leaves_the_first_undisturbed(
    server: CommandServer,
    settings: RunSettings,
    run: Path,
    whole: Path,
    stopped_in_step_3: Ended,
    option: list[str],
) -> None:
    second = settings.run(server, run, *option)
    assert second.exit_code == 5
    assert second.output == (
        f"Error: {run} is in use by another gptcli process. "
        "Wait for it, or choose another --output-dir.\n"
    )
    ended = server.let_go_on(stopped_in_step_3)
    assert ended.exit_code == 0
    assert metrics_of(run) == metrics_of(whole)


def test_the_lock_of_a_killed_process_is_no_obstacle(
    server: CommandServer, settings: RunSettings, run: Path, whole: Path
) -> None:
    killed = settings.run(server, run, trigger={"call": STEP, "count": 3}, signals=[SIGKILL])
    assert killed.exit_code == -SIGKILL
    assert (run / ".lock").exists()
    resume_and_compare(server, settings, run, whole)


# Sends itself a signal as the import of torch begins, which takes seconds on a cold machine.
STOPPED_WHILE_IMPORTING = """
import os, sys
from gptcli.cli import main

def stop_at_torch(event, arguments):
    global is_stopped
    if event == "import" and arguments[0] == "torch" and not is_stopped:
        is_stopped = True
        os.kill(os.getpid(), number)

is_stopped = False
number = int(sys.argv.pop())
sys.addaudithook(stop_at_torch)
main()
"""


@pytest.mark.parametrize(
    "number",
    # The other two take the same way, as the tests above show.
    [SIGTERM, SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (SIGUSR1, SIGHUP))],
    ids=lambda number: signal.Signals(number).name,
)
def test_a_signal_while_the_libraries_are_imported_ends_with_its_exit_code(
    config_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    arguments = ["pretrain", "--config", str(config_file), "--output-dir", str(run)]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_IMPORTING, *arguments, str(int(number))],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.returncode == EXIT_CODES[number], done.stderr
    assert done.stderr.endswith("before training; run the same command again.\n")
    assert not run.exists()
