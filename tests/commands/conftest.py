"""What the tests of commands share: a command as a person types it, and what it printed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gptcli.config.loading import load_settings
from gptcli.pipelines.train import run_training
from tests.test_cli import run_main


class Result(NamedTuple):
    """What a command printed, and its exit code."""

    stdout: str
    stderr: str
    code: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def notes(self) -> list[str]:
        return self.stderr.splitlines()


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `gptcli` in this process, in a folder of its own, with standard input from a pipe."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run_main(monkeypatch, *map(str, arguments))
        captured = capsys.readouterr()
        return Result(captured.out, captured.err, code)

    return run


def refused(result: Result, code: int) -> str:
    """Return the one line that a command was refused with."""
    assert (result.code, result.stdout) == (code, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").rstrip("\n")


@pytest.fixture
def adapted_run(config_file: Path, model_folder: Path, tmp_path: Path) -> Path:
    """Fine-tune a model with adapters, in the folder `run`."""
    pytest.importorskip("peft")
    changes = ["task=language-modelling", f"model.name={model_folder}", "training.lora.rank=2"]
    text = config_file.read_text().replace("tokenizer:\n  train: {vocab_size: 300}\n", "")
    config_file.write_text("\n".join(text.splitlines()[1:]))
    run_training(load_settings(config_file, changes), tmp_path / "run")
    return tmp_path / "run"
