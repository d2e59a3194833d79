"""Tokens a second of `gptcli pretrain`, beside Hugging Face's Trainer, nanoGPT and litgpt.

    make bench-training NANOGPT=PATH       # Environments of their own, then all shapes: about an hour.
    python benchmarks/training.py 6x384 --rounds 3 --peers trainer,nanogpt --nanogpt PATH
    python benchmarks/training.py memory --peers trainer
    python benchmarks/training.py --device cuda --nanogpt PATH

All sides train a GPT-2 of the same shape from random weights on the same tokens, as many a step, without
dropout, in a process each, and in turn. What counts is the wall time of an optimizer step, from its
batch to the updated weights, as each side says it: the median of the steps of a run without its first
WARM_UP, at least FEWEST_STEPS of them and for --seconds; then the median over the rounds. Ratios are of
the runs of one round. After the first round only the defaults of each peer and the fastest of its flags
go on; another round begins if it should end within --minutes. A run is killed when it has shown enough,
so that nobody saves anything.

gptcli    the command for a run without end. What is compared has AdamW, as all peers have; beside it the
          same by torch.compile (on a GPU, where that is the default, without), and as it comes, with
          Muon. --set tries settings.
trainer   peers/hf_trainer.py, the recipe of transformers' run_clm.py: as it comes in float32 and with a
          mask of ones; flags: bf16, the data without the mask, torch_compile.
nanogpt   train.py of a checkout: its README's recipe for CPUs (float32, not compiled), on a GPU as it
          comes; flags: compile, dtype. On a CPU train.py gives dtype no effect (see its `ctx`), so two
          more rows have that line changed (peers/nanogpt_autocast.py) and are not nanoGPT as it comes.
          Its model has no biases by default.
litgpt    `litgpt pretrain`, always compiled, bf16-mixed by default, on a configuration of the same sizes
          whose head shares the embedding. It has rotary positions in place of learnt ones. bf16-true
          keeps weights and optimizer in bfloat16 too, which is another computation.

Operations a token: 6 for each weight of a matrix, the head's included and the embeddings' not, and
12 * layers * width * context for attention (Chowdhery et al. 2022, PaLM, appendix B), of which causal
attention needs half; so half is counted. Their rate is given as a share of the rate of plain products of
large matrices (results.py) in bfloat16 and in float32 on the same machine, measured before each round.

Memory is the peak of what the process had resident (Linux); with --device cuda, of what the GPU gave out
since the run began.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from results import RESULTS, matrix_rate, write_section
from training_sides import GPTCLI, PEERS, SHAPES, SIDES, Side, Work

REPOSITORY = Path(__file__).parent.parent
DATA = REPOSITORY.parent / "shared" / "data"

WARM_UP = 2
FEWEST_STEPS = 3
GIVE_UP_SECONDS = 900
# Of an optimizer step, if --tokens says nothing.
TOKENS = {"cpu": 2048, "cuda": 32_768}
# The memory of the same computation: its flags.
MEMORY_FLAGS = (GPTCLI.flags, "as it comes", "bf16, no mask")
# Of a peer's speed, by the kind of its flags; of the bf16 rate, by shape; of a peer's memory.
WANTED_RATIO = {"defaults": 2.0, "flags": 1.3}
WANTED_SHARE = {"6x384": 0.7, "12x768-512": 0.7, "12x768-1024": 0.7}
WANTED_MEMORY = 0.5


@dataclass(frozen=True)
class Run:
    """What a process has shown."""

    tokens_per_second: float
    steps: int
    """That counted."""
    peak_bytes: int


Runs = dict[Side, list[Run | None]]
"""A run a round; None where it failed."""


class RunFailed(Exception):
    """A side that did not come to train enough; its last words."""


# A run.


def train(work: Work, side: Side, seconds: float) -> Run:
    """Run a side until it has shown enough, and kill it. Raises RunFailed."""
    with tempfile.TemporaryDirectory(dir=work.folder) as name:
        run, log = Path(name) / "run", Path(name) / "log"
        run.mkdir()
        command = work.command(side, run)
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(PEERS),  # For litgpt's data module.
            "TORCHINDUCTOR_CACHE_DIR": str(work.folder / "compiled"),
        }
        gpu_bytes_before = gpu_bytes(work.device)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=work.nanogpt if side.peer == "nanogpt" else work.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # The compiler has processes of its own.
            )
        peak, started = 0, time.monotonic()
        try:
            while True:
                time.sleep(0.2)
                has_ended = process.poll() is not None
                if work.device == "cpu":
                    peak = max(peak, resident_bytes(process.pid))
                else:
                    peak = max(peak, gpu_bytes(work.device) - gpu_bytes_before)
                steps = work.step_seconds(side, run, log)[WARM_UP:]
                if len(steps) >= FEWEST_STEPS and sum(steps) >= seconds:
                    break
                if has_ended or time.monotonic() - started > GIVE_UP_SECONDS:
                    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                    raise RunFailed("\n".join(words[-15:]) or "It said nothing.")
        finally:
            with suppress(ProcessLookupError):  # It may have ended by itself.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Run(work.tokens / statistics.median(steps), len(steps), peak)


def resident_bytes(process: int) -> int:
    """Return the most memory that a process has had so far; 0 where Linux's /proc is not there."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)
    return int(found[1]) * 1024 if found else 0


def gpu_bytes(device: str) -> int:
    """Return the memory of the first GPU that is in use, by whomever; 0 for the CPU."""
    if device == "cpu":
        return 0
    command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 2**20


# A comparison.


def choose_sides(options: argparse.Namespace, name: str) -> tuple[list[Side], list[str]]:
    """Return the sides that can run here, and why others cannot."""
    needed = {"trainer": options.peers_python, "nanogpt": options.nanogpt, "litgpt": options.litgpt}
    left_out = [
        f"{peer} was left out: {path or 'its checkout (--nanogpt)'} is not there."
        for peer, path in needed.items()
        if peer in options.peers and not (path and path.exists())
    ]
    sides = [
        side
        for side in SIDES[options.device]
        if side.peer == GPTCLI.peer
        or (side.peer in options.peers and needed[side.peer] and needed[side.peer].exists())
    ]
    if name == "memory":
        sides = [side for side in sides if side.flags in MEMORY_FLAGS and side.peer != "litgpt"]
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", "g++"), "clang++")):
        left_out += [f"{side.name} was left out: no C++ compiler." for side in sides if side.is_compiled]
        sides = [side for side in sides if not side.is_compiled]
    return sides, left_out


def prepare(options: argparse.Namespace, name: str, folder: Path) -> Work:
    """Let gptcli make the tokens that all sides read."""
    shape = SHAPES[name]
    work = Work(
        shape=shape,
        sequences=shape.sequences or max(1, options.tokens // shape.context),
        device=options.device,
        folder=folder,
        text=options.text.absolute(),
        tokenizer=options.tokenizer.absolute(),
        settings=options.settings,
        peers_python=options.peers_python.absolute(),
        litgpt=options.litgpt.absolute(),
        nanogpt=options.nanogpt and options.nanogpt.absolute(),
    )
    command = [*work.pretraining(folder / "unused"), "--dry-run"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    tokenizer = json.loads((work.store / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    found = len(tokenizer["model"]["vocab"])
    if found != shape.vocabulary:
        sys.exit(
            f"{options.text} gives a vocabulary of {found}, not {shape.vocabulary}: give more text."
        )
    return work


def compare(work: Work, sides: list[Side], options: argparse.Namespace) -> tuple[Runs, dict[str, float]]:
    """Return the runs, and the machine's rates."""
    runs: Runs = {side: [] for side in sides}
    rates = {"bf16": 0.0, "fp32": 0.0}
    started = time.monotonic()
    for number in range(options.rounds):
        begun = time.monotonic()
        # Neither always comes first.
        for side in sides[:: -1 if number % 2 else 1]:
            # Between all of them: a machine's clock comes and goes.
            for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
                rates[name] = max(rates[name], matrix_rate(dtype, work.device))
            if work.device == "cuda":
                torch.cuda.empty_cache()
            found: Run | None = None
            try:
                found = train(work, side, options.seconds)
                said = f"{found.tokens_per_second:,.0f} tokens/s, {found.peak_bytes / 2**30:.2f} GiB"
                print(f"  round {number + 1}, {side.name}: {said}, {found.steps} steps", flush=True)
            except RunFailed as problem:
                print(f"  round {number + 1}, {side.name} failed:\n{problem}", flush=True)
            runs[side].append(found)
        if number == 0:
            sides = worth_another_round(runs)
        now = time.monotonic()
        if now - started + (now - begun) > options.minutes * 60:
            break
    return runs, rates


def worth_another_round(runs: Runs) -> list[Side]:
    """Return the fastest side of each peer and kind: its defaults, its best flags, what was changed."""
    best: dict[tuple[str, str], tuple[float, Side]] = {}
    for side, (run,) in runs.items():
        key = (side.peer, side.kind)
        if run and (key not in best or run.tokens_per_second > best[key][0]):
            best[key] = (run.tokens_per_second, side)
    return [side for _, side in best.values()]


# What is said of it.


def table(work: Work, runs: Runs, rates: dict[str, float]) -> list[str]:
    """Return the comparison in Markdown."""
    lines = [
        "| | tokens/s | gptcli is | of the bf16 rate | of the fp32 rate | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for side, all_runs in runs.items():
        found = [run for run in all_runs if run]
        if not found:
            lines.append(f"| {side.name} | failed | | | | |")
            continue
        speeds = [run.tokens_per_second for run in found]
        speed = statistics.median(speeds)
        spread = f" ({min(speeds):,.0f} to {max(speeds):,.0f} in {len(speeds)} runs)"
        cells = [
            side.name,
            f"{speed:,.0f}" + (spread if len(speeds) > 1 else ""),
            "" if side == GPTCLI else f"{ratio_to(side, runs):.2f} times as fast",
            *(f"{speed * work.shape.operations / rate:.0%}" for rate in rates.values()),
            f"{max(run.peak_bytes for run in found) / 2**30:.2f} GiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratio_to(side: Side, runs: Runs) -> float:
    """Return how many times as fast gptcli is: the median over the rounds that both ran in."""
    # Sides that go on do so from the first round on.
    pairs = zip(runs[GPTCLI], runs[side], strict=False)
    ratios = [ours.tokens_per_second / run.tokens_per_second for ours, run in pairs if ours and run]
    return statistics.median(ratios) if ratios else float("nan")


def verdicts(name: str, work: Work, runs: Runs, rates: dict[str, float]) -> list[str]:
    """Return what is wanted, and what it is."""
    ours = [run for run in runs[GPTCLI] if run]
    if not ours:
        return ["gptcli did not train: nothing can be compared."]
    if name == "memory":
        peak = max(run.peak_bytes for run in ours)
        return [
            f"Wanted: at most {WANTED_MEMORY:.0%} of the peak memory of {side.name}; it is "
            f"{peak / max(run.peak_bytes for run in theirs):.0%}."
            for side in runs
            if (side.peer, side.kind) == ("trainer", "flags")
            and (theirs := [run for run in runs[side] if run])
        ]
    lines = []
    for peer, kind in dict.fromkeys((side.peer, side.kind) for side in runs):
        same = [side for side in runs if (side.peer, side.kind) == (peer, kind) and any(runs[side])]
        if kind in WANTED_RATIO and same:
            ratio = min(ratio_to(side, runs) for side in same)
            of = "as it comes" if kind == "defaults" else "at its best flags"
            lines.append(f"Wanted: {WANTED_RATIO[kind]:.1f} times {peer} {of}; it is {ratio:.2f}.")
    if name in WANTED_SHARE:
        speed = statistics.median(run.tokens_per_second for run in ours)
        share = speed * work.shape.operations / rates["bf16"]
        lines.append(f"Wanted: {WANTED_SHARE[name]:.0%} of the bf16 rate; it is {share:.0%}.")
    return lines


def describe(work: Work, rates: dict[str, float]) -> str:
    """Return what was trained, and what the machine can do."""
    shape = work.shape
    return (
        f"{shape.layers} layers, {shape.heads} heads, width {shape.width}, vocabulary "
        f"{shape.vocabulary:,}; {work.tokens:,} tokens a step in {work.sequences} sequences of "
        f"{shape.context:,}; {shape.operations / 1e6:,.1f} million operations a token. Matrix products, "
        f"best seen: bf16 {rates['bf16'] / 1e9:,.0f} GFLOP/s, fp32 {rates['fp32'] / 1e9:,.0f} GFLOP/s."
    )


def read_options() -> argparse.Namespace:
    """Return what the command line says, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="at most")
    parser.add_argument("--minutes", type=float, default=6, help="a shape; the first round ends anyway")
    parser.add_argument("--seconds", type=float, default=8, help="a run, after its first steps")
    parser.add_argument("--peers", default="trainer,nanogpt,litgpt")
    parser.add_argument("--device", choices=list(SIDES), default="cpu")
    parser.add_argument("--tokens", type=int, help=f"a step; default: {TOKENS}")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="for gptcli")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--peers-python", type=Path, default=REPOSITORY / ".venv-peers/bin/python")
    parser.add_argument("--litgpt", type=Path, default=REPOSITORY / ".venv-litgpt/bin/litgpt")
    text = DATA / "language-modelling" / "wikitext2-train.txt"
    parser.add_argument("--text", type=Path, default=text)
    parser.add_argument("--tokenizer", type=Path, default=DATA / "gpt2-tokenizer", help="GPT-2's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.tokens = options.tokens or TOKENS[options.device]
    options.names = options.names or list(SHAPES)
    options.peers = [peer for peer in options.peers.split(",") if peer]
    known = {side.peer for side in SIDES[options.device]} - {GPTCLI.peer}
    for given, there in ((options.names, SHAPES.keys()), (options.peers, known)):
        if not set(given) <= there:
            parser.error(f"there is {', '.join(sorted(there))}, but not all of {', '.join(given)}")
    for path in (options.text, options.tokenizer):
        if not path.exists():
            sys.exit(f"{path} is not there; give --text and --tokenizer. Nothing was measured.")
    return options


def main() -> None:
    # What it started would go on without it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))
    options = read_options()
    for name in options.names:
        sides, left_out = choose_sides(options, name)
        print("\n".join((f"{name}:", *left_out)), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            work = prepare(options, name, Path(folder))
            runs, rates = compare(work, sides, options)
        tried = [f"gptcli ran with {', '.join(options.settings)}."] if options.settings else []
        notes = [f"- {line}" for line in (*tried, *verdicts(name, work, runs, rates), *left_out)]
        lines = [describe(work, rates), "", *table(work, runs, rates), "", *notes]
        print("\n".join(lines), flush=True)
        write_section(
            f"Training, {options.device}: {name}", lines, device=options.device, file=options.results
        )


if __name__ == "__main__":
    main()
