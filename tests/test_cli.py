"""The command line as a whole: exit codes, one-line errors, where output goes and what it may hold."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

import gptcli
from gptcli.cli import GROUPS, command_paths, main
from tests.conftest import REPOSITORY, Start, command, environment

COMMANDS = ["pretrain", "generate"]


@pytest.fixture
def closed_pipe() -> Iterator[TextIO]:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as file:
        yield file


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["gptcli", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


# Help and version


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["--version"],
        *([name, "--help"] for name in COMMANDS),
        ["config", "validate", str(REPOSITORY / "configs" / "pretrain" / "demo.yaml")],
        ["config", "show"],
        ["config", "schema"],
        ["pretrain", "--config", "missing.yaml"],
        ["generate", "hello", "--model", "m", "--temperature", "0"],
    ],
)
def test_help_and_config_errors_import_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from gptcli.cli import main\n"
        f"sys.argv = ['gptcli', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'numpy', 'pyarrow'}\n"
        "print('heavy:', *sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_version_is_the_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr() == (f"gptcli {gptcli.__version__}\n", "")


def test_help_goes_to_stdout_and_names_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    shown = [name for name in COMMANDS if re.search(rf"^  {name} {{2,}}\S", out, re.MULTILINE)]
    assert shown == COMMANDS


def test_help_groups_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--help") == 0
    parts = re.split(r"^(\w+):$", capsys.readouterr().out, flags=re.MULTILINE)[3:]
    found = {
        title: re.findall(r"^  (\w+)", commands, re.MULTILINE)
        for title, commands in zip(parts[::2], parts[1::2], strict=True)
    }
    assert {title: sorted(names) for title, names in found.items()} == {
        title: sorted(commands) for title, commands in GROUPS.items()
    }
    assert list(found) == ["Train", "Use", "Measure", "Look"]


@pytest.mark.parametrize("path", list(command_paths()), ids=" ".join)
def test_the_help_of_a_command_ends_with_its_examples_unwrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_main(monkeypatch, *path, "--help") == 0
    text, _, examples = capsys.readouterr().out.partition("\nExamples:\n")
    lines = examples.rstrip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("  ") and f"gptcli {' '.join(path)}" in line for line in lines)
    assert "Examples" not in text


def test_without_arguments_the_help_is_shown_and_the_exit_code_is_for_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: gptcli")


# Completion


def test_the_completion_of_a_shell_can_be_shown_and_installed(tmp_path: Path) -> None:
    home = environment(
        HOME=str(tmp_path), SHELL="/bin/bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    shown = subprocess.run(
        command("--show-completion", "bash"),
        capture_output=True,
        text=True,
        env=home,
        timeout=60,
        check=True,
    )
    assert "_GPTCLI_COMPLETE=complete_bash" in shown.stdout
    subprocess.run(
        command("--install-completion", "bash"), capture_output=True, env=home, timeout=60, check=True
    )
    assert "gptcli" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("gptcli pre", ["pretrain"]),
        ("gptcli config v", ["validate"]),
        ("gptcli pretrain --res", ["--resume"]),
        ("gptcli pretrain --set runtime.s", ["runtime.seed="]),
    ],
)
def test_a_shell_is_told_how_a_word_goes_on(typed: str, completed: list[str]) -> None:
    words = typed.split()
    done = subprocess.run(
        command(),
        capture_output=True,
        text=True,
        env=environment(
            _GPTCLI_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1)
        ),
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == completed


# Errors


@pytest.mark.parametrize(
    ("arguments", "named", "help_command"),
    [
        (["fly"], "'fly'", "gptcli"),
        (["pretran"], "'pretrain'?", "gptcli"),
        (["--fly"], "--fly", "gptcli"),
        (["pretrain"], "'--config'", "gptcli pretrain"),
        (["pretrain", "--config"], "'--config'", "gptcli"),
        (["pretrain", "--confg", "a.yaml"], "--config", "gptcli pretrain"),
        (["pretrain", "--config", "a.yaml", "b.yaml"], "b.yaml", "gptcli pretrain"),
        (
            ["generate", "a", "--model", "m", "--top-k", "many"],
            "--top-k is 'many'; it must be a whole number.",
            "gptcli generate",
        ),
        (["eval", "--limit", "0"], "--limit is '0'; it must be at least 1.", "gptcli eval"),
    ],
)
def test_a_usage_error_is_one_line_that_leads_to_the_help(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
    help_command: str,
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert re.fullmatch(rf"Error: .*{re.escape(named)}.* See `{help_command} --help`\.", line)
    assert "?." not in line


def test_debug_shows_the_traceback_and_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPTCLI_DEBUG", "1")
    assert run_main(monkeypatch, "pretrain", "--config", "no.yaml") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1] == "Error: no.yaml: no such config file."


def test_control_characters_in_an_error_are_written_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "pretrain", "--config", "a\x1b[2Jb\nc.yaml") == 2
    assert capsys.readouterr().err == "Error: a\\x1b[2Jb c.yaml: no such config file.\n"


def test_ctrl_c_during_training_ends_with_130_and_no_traceback(start: Start, config_file: Path) -> None:
    process = start("pretrain", "--config", config_file, "--set", "training.max_steps=1_000_000")
    for line in process.stderr:
        if line.startswith("Step 3:"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130
    assert rest.splitlines()[-1].startswith("Stopped by Ctrl-C after step ")
    assert "Traceback" not in rest


# Streams


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"]])
def test_a_closed_stdout_ends_quietly(closed_pipe: TextIO, arguments: list[str]) -> None:
    done = subprocess.run(
        command(*arguments), stdout=closed_pipe, stderr=subprocess.PIPE, env=environment(), timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_generating_for_a_reader_that_has_gone_ends_quietly(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_folder: Path,
    closed_pipe: TextIO,
) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    options = ["--model", str(model_folder), "--max-new-tokens", "2", "--device", "cpu"]
    assert run_main(monkeypatch, "generate", "The cat", *options) == 0
    assert "Error" not in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["fly"], 2)])
def test_a_closed_stderr_changes_no_exit_code(
    closed_pipe: TextIO, arguments: list[str], code: int
) -> None:
    done = subprocess.run(
        command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=closed_pipe,
        env=environment(),
        timeout=60,
    )
    assert done.returncode == code


def test_training_goes_on_when_nobody_reads_along(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config_file: Path,
    closed_pipe: TextIO,
) -> None:
    monkeypatch.setattr(sys, "stderr", closed_pipe)
    run = config_file.parent / "run"
    options = ["--config", str(config_file), "--output-dir", str(run)]
    assert run_main(monkeypatch, "pretrain", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ended"] == "finished: training.max_steps"
    assert (run / "model" / "model.safetensors").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_a_full_disk_under_stdout_is_an_environment_error(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(*arguments),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            timeout=60,
        )
    assert done.returncode == 5
    assert done.stderr == "Error: The disk is full. Free some space and run this again.\n"


def test_no_colour_and_no_bar_when_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config_file: Path
) -> None:
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    options = ["--config", str(config_file), "--output-dir", str(config_file.parent / "run")]
    assert run_main(monkeypatch, "pretrain", *options, "--json") == 0
    out, err = capsys.readouterr()
    assert not {"\x1b", "\r"} & {*out, *err}
    assert re.search(r"^Training  step 6/6  loss \d", err, re.MULTILINE)
    assert len(out.splitlines()) == 1
    assert json.loads(out)["step"] == 6
