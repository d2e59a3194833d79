"""What the start of gptcli costs, beside others: whole processes, for benchmarks/inference.py."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# How many times the help of others takes as long; how many times the bare cost a first token may.
WANTED_HELP = {"litgpt": 20.0, "transformers": 12.0}
WANTED_FIRST_TOKEN = 1.15
FIRST_TOKEN, BARE_COST = "gptcli generate", "bare cost"
NAMES = {
    FIRST_TOKEN: "`gptcli generate` until its first token",
    BARE_COST: "importing torch and transformers' GPT-2, loading the weights",
}
BARE_PROGRAM = (
    "import sys, torch; from transformers import GPT2LMHeadModel; "
    "GPT2LMHeadModel.from_pretrained(sys.argv[1], dtype=torch.bfloat16); print('loaded')"
)

Times = dict[str, list[float]]
"""Seconds of each process by its name, a round each."""


def measure_startup(model: Path, programs: dict[str, Path], rounds: int) -> Times:
    """Return what processes take, in turn. programs: those whose --help is measured, by name."""
    commands = {name: [str(program), "--help"] for name, program in programs.items()}
    generate = [str(programs["gptcli"]), "generate", "Once upon a time", "--model", str(model)]
    commands[FIRST_TOKEN] = [*generate, "--max-new-tokens", "1", "--json"]
    commands[BARE_COST] = [sys.executable, "-c", BARE_PROGRAM, str(model)]
    times: Times = {name: [] for name in commands}
    for number in range(-1, rounds):  # The first warms the disk's cache.
        # None always comes first.
        for name in list(times)[:: -1 if number % 2 else 1]:
            seconds = process_seconds(commands[name], to_first_byte=name not in programs)
            if number >= 0:
                times[name].append(seconds)
    return times


def process_seconds(command: list[str], *, to_first_byte: bool) -> float:
    """Return the time from the start of a process to its end, or to the first byte that it writes."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdout
    process.stdout.read(1)
    seconds = time.perf_counter() - started
    process.stdout.read()
    code = process.wait()
    if code:
        sys.exit(f"{' '.join(command)} ended with code {code}. Nothing was measured.")
    return seconds if to_first_byte else time.perf_counter() - started


def startup_lines(times: Times) -> list[str]:
    """Return the report in Markdown."""

    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    lines = ["| | seconds |", "|---|---|"]
    for name, seconds in times.items():
        spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
        cells = NAMES.get(name, f"`{name} --help`"), f"{statistics.median(seconds):.2f} {spread}"
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for name, wanted in WANTED_HELP.items():
        if name in times:
            lines.append(
                f"- Wanted: `gptcli --help` {wanted:g} times as fast as `{name} --help`; it is "
                f"{ratio(name, 'gptcli'):.1f}."
            )
    lines.append(
        f"- Wanted: the first token after at most {WANTED_FIRST_TOKEN:g} times the bare cost; it is "
        f"{ratio(FIRST_TOKEN, BARE_COST):.2f}."
    )
    return lines
