"""What the reliability tests share: `gptcli` run many times at the price of one start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytest.register_assert_rewrite("tests.reliability.runs")


@dataclass(frozen=True)
class Ended:
    """How a command ended; exit code None: a SIGSTOP has stopped it."""

    pid: int
    exit_code: int | None
    output: str
    file_events: int
    seconds: float

    @property
    def saved(self) -> list[str]:
        """Names of the checkpoints that it said it had saved."""
        lines = [line for line in self.output.splitlines() if line.startswith("Saved ")]
        return [Path(line.removesuffix(".")).name for line in lines]


class CommandServer:
    """The process that runs the commands; see command_server.py for what it takes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.reliability.command_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    def run(
        self,
        *arguments: str | Path,
        root: Path,
        trigger: dict[str, Any] | None = None,
        signals: Sequence[int] = (),
        file_size_limit: int | None = None,
    ) -> Ended:
        return self._ask(
            {
                "arguments": [str(argument) for argument in arguments],
                "root": str(root),
                "trigger": trigger or {},
                "signals": list(signals),
                "file_size_limit": file_size_limit,
            }
        )

    def let_go_on(self, stopped: Ended) -> Ended:
        return self._ask({"continue": stopped.pid})

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> Ended:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


@pytest.fixture(scope="session")
def server() -> Iterator[CommandServer]:
    server = CommandServer()
    yield server
    server.close()
