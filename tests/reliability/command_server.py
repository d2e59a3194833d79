"""Runs `gptcli` many times at the price of one start: imports once, then forks a process a command.

Reads one JSON request a line on stdin and answers each by one JSON line on stdout:

    {"arguments": [...], "root": FOLDER, "trigger": {...}, "signals": [...], "file_size_limit": BYTES}
    {"pid": N, "exit_code": N, "output": stdout and stderr, "file_events": N, "seconds": S}

A trigger says when the process gets the signals; {} for never. One of

    {"call": NAME, "count": N}    when a function of this name is called for the Nth time
    {"file_event": N}             before the Nth time a file below `root` is opened, moved, removed
    {"seconds": S}                S seconds after the start; sent from outside, within any call

A negative exit code is the signal that ended the process, as in `subprocess`. A process that a SIGSTOP
has stopped is answered with exit code null; {"continue": PID} lets it go on.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

# What a run imports on its way.
import torch._dynamo
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast

import gptcli.cli
import gptcli.pipelines.train

IMPORTED = (gptcli.pipelines.train, AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerFast)


class Trigger:
    """Counts what the request says, and sends the signals when the count is reached."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._root: str = request["root"]
        self._trigger: dict[str, Any] = request["trigger"]
        self._signals: list[int] = request["signals"]
        self._calls = 0
        self.file_events = 0

    def install(self) -> None:
        sys.addaudithook(self._see_event)
        if "call" in self._trigger:
            sys.setprofile(self._see_call)

    def _see_call(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == self._trigger["call"]:
            self._calls += 1
            if self._calls == self._trigger["count"]:
                sys.setprofile(None)
                self._send_signals()

    def _see_event(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            if not any(self._root in str(argument) for argument in arguments[:2]):
                return
            self.file_events += 1
            if self.file_events == self._trigger.get("file_event"):
                self._send_signals()

    def _send_signals(self) -> None:
        for number in self._signals:
            os.kill(os.getpid(), number)


@dataclass
class Child:
    """A command that runs."""

    pid: int
    output: int
    """Read end of the pipe that is its stdout and stderr."""
    facts: int
    """Read end of the pipe on which it says how many file events it has seen."""
    started: float


def run_command(request: dict[str, Any], output: int, facts: int) -> NoReturn:
    """Be the command, and end as it ends."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    if request["file_size_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size_limit"],) * 2)
    sys.argv = ["gptcli", *request["arguments"]]
    trigger = Trigger(request)
    trigger.install()
    code: Any = 0
    try:
        gptcli.cli.main()
    except SystemExit as end:
        code = end.code
    os.write(facts, str(trigger.file_events).encode())
    sys.stdout.flush()
    os._exit(int(code or 0))


def start(request: dict[str, Any]) -> Child:
    output, facts = os.pipe(), os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            run_command(request, output[1], facts[1])
        finally:  # An exception that the command let pass must not go on to serve.
            os._exit(99)
    os.close(output[1])
    os.close(facts[1])
    if "seconds" in request["trigger"]:
        time.sleep(request["trigger"]["seconds"])
        for number in request["signals"]:
            os.kill(pid, number)  # One that has ended is still there: nobody has waited for it.
    return Child(pid, output[0], facts[0], started)


def wait(child: Child) -> dict[str, Any]:
    """Return the answer: how the command ended, or that it was stopped."""
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    answer = {"pid": child.pid, "exit_code": None, "output": "", "file_events": 0, "seconds": 0.0}
    if os.WIFSTOPPED(status):
        return answer
    with os.fdopen(child.output, "rb") as output, os.fdopen(child.facts, "rb") as facts:
        return {
            **answer,
            "exit_code": os.waitstatus_to_exitcode(status),
            "output": output.read().decode(),
            "file_events": int(facts.read() or 0),
            "seconds": time.monotonic() - child.started,
        }


def serve() -> None:
    children: dict[int, Child] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "continue" in request:
            child = children.pop(request["continue"])
            os.kill(child.pid, signal.SIGCONT)
        else:
            child = start(request)
        answer = wait(child)
        if answer["exit_code"] is None:
            children[child.pid] = child
        print(json.dumps(answer), flush=True)
    for child in children.values():
        os.kill(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve()
