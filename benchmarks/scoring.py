"""Seconds that `gptcli eval` needs for a score, beside lm-evaluation-harness and transformers.

    python -m venv .venv-harness
    .venv-harness/bin/pip install -c constraints.txt "lm-eval[hf]==0.4.13"
    python benchmarks/scoring.py                         # which is what `make bench-scoring` does
    python benchmarks/scoring.py arc_easy --limit 300
    python benchmarks/scoring.py --check                 # in float32, on little, item by item

Both sides score the same with the same GPT-2 (of 124M parameters and random weights, unless --model says
another), in a process each, and in turn. What counts is scoring alone, tokenizing included: the model is
loaded, by gptcli also laid out for scoring (half a second), and the rows are read before.

arc_easy, blimp   lm-evaluation-harness with the batch size of BATCH_SIZES that is the fastest on a
                  sample. Its "auto" is the last of them: on a CPU nothing makes it take less.
wikitext          the loop of transformers' page "Perplexity of fixed-length models" over WikiText-2's
                  validation text, 1,024 tokens every 512; with no mask, under inference_mode, and with
                  as many windows at once as are the fastest on a sample.

In bfloat16 lm-evaluation-harness rounds its very sums, so that choices come out equal. The first of them
then counts as chosen, which in BLIMP is the right one: "ties" is the share of rows where that happens.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from harness_model import save_model
from transformers import GPT2LMHeadModel

from gptcli.config.schema import DataSettings, RuntimeSettings
from gptcli.data.documents import Piece
from gptcli.data.ledger import Reading
from gptcli.data.tokenizing import load_tokenizer
from gptcli.evaluation.benchmarks.benchmark import Item
from gptcli.evaluation.benchmarks.table import BENCHMARKS, find_rows
from gptcli.evaluation.choices import ChoiceCounts, score_items
from gptcli.evaluation.continuations import ContinuationScorer
from gptcli.evaluation.sliding_window import TextScorer, WindowRules
from gptcli.models.loading import load_model
from gptcli.training.device import DTYPES, choose_compute

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
HARNESS = Path(__file__).parent / "harness_reference.py"
HARNESS_PYTHON = Path(__file__).parent.parent / ".venv-harness" / "bin" / "python"
HARNESS_TASKS = {
    "arc_easy": ["arc_easy"],
    "blimp": [
        "blimp_anaphor_number_agreement",
        "blimp_causative",
        "blimp_determiner_noun_agreement_1",
        "blimp_irregular_past_participle_verbs",
        "blimp_regular_plural_subject_verb_agreement_1",
    ],
}
BATCH_SIZES = [1, 8, 16, 32, 64]
WINDOWS_AT_ONCE = [1, 2, 4]
CONTEXT_LENGTH, STRIDE = 1024, 512
# Rows of a task, or tokens: so that the slower side takes about a minute on two cores, and a check or a
# sample little longer than loading the model.
LIMITS = {"arc_easy": 600, "blimp": 1000, "wikitext": 24_000}
SMALL_LIMITS = {"arc_easy": 40, "blimp": 40, "wikitext": 4_000}


@dataclass(frozen=True)
class Job:
    """What one side of a comparison scores."""

    name: str
    limit: int
    model: str
    data: str
    precision: str

    @property
    def is_choices(self) -> bool:
        return self.name in HARNESS_TASKS

    def items(self) -> Iterator[Item]:
        """Yield the first items of each phenomenon, or of the whole benchmark."""
        benchmark = BENCHMARKS[self.name]
        rows = find_rows(benchmark, f"{self.data}/benchmarks", DataSettings(), Reading())
        counts: dict[str, int] = {}
        for item in benchmark.read(rows, DataSettings(), Reading()):
            counts[item.group] = counts.get(item.group, 0) + 1
            if counts[item.group] <= self.limit:
                yield item

    def text(self, tokenizer: Any) -> str:
        """Return the first lines of the text, of `limit` tokens or a few more."""
        file = Path(self.data) / "language-modelling" / "wikitext2-valid.txt"
        lines, tokens = [], 0
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            lines.append(line)
            tokens += len(tokenizer.encode(line))
            if tokens >= self.limit:
                break
        return "".join(lines)


@dataclass(frozen=True)
class Found:
    """What one side says, and how long that took."""

    seconds: float
    scores: dict[str, float]
    values: list[float]
    """Log-probabilities of all continuations, or the mean loss of the text."""


# What the processes run.


def gptcli_side(job: Job) -> Found:
    settings = RuntimeSettings.model_validate({"device": "cpu", "precision": job.precision})
    compute = choose_compute(settings, for_training=False)
    loaded = load_model(job.model, compute.device, compute.dtype)
    if not job.is_choices:
        # With end-of-text before the first token, these are the very windows of transformers' loop.
        length = CONTEXT_LENGTH - (job.precision == "fp32")
        text = job.text(loaded.tokenizer)
        scorer = TextScorer(loaded, compute, WindowRules(length, STRIDE, separator="\n\n"))
        started = time.perf_counter()
        measured = scorer.measure([Piece(text, True)]).measured.items.sum(0)
        return of_text(time.perf_counter() - started, measured[0] / measured[1])
    items, choice_scorer = list(job.items()), ContinuationScorer(loaded, compute)
    started = time.perf_counter()
    results = list(score_items(choice_scorer, items, ChoiceCounts()))
    seconds = time.perf_counter() - started
    right = [result.predicted == result.item.gold for result in results]
    logs = [result.log_probabilities.tolist() for result in results]
    return of_choices(seconds, right, logs)


def transformers_side(job: Job, windows_at_once: int) -> Found:
    """The loop of https://huggingface.co/docs/transformers/perplexity, with some windows at once."""
    tokenizer = load_tokenizer(job.model)
    model: Any = GPT2LMHeadModel.from_pretrained(job.model, dtype=DTYPES[job.precision]).eval()
    text = job.text(tokenizer)
    started = time.perf_counter()
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text)]])
    windows, end = [], 0
    for begin in range(0, ids.shape[1], STRIDE):
        previous, end = end, min(begin + CONTEXT_LENGTH, ids.shape[1])
        targets = ids[:, begin:end].clone()
        targets[:, : previous - end] = -100
        windows.append((ids[:, begin:end], targets))
        if end == ids.shape[1]:
            break
    nats, tokens = 0.0, 0
    with torch.inference_mode():
        while windows:
            # The last may be shorter than the others.
            some = [one for one in windows[:windows_at_once] if one[0].shape == windows[0][0].shape]
            del windows[: len(some)]
            inputs, targets = (torch.cat(parts) for parts in zip(*some, strict=True))
            loss = model(inputs, labels=targets).loss
            scored = int((targets[:, 1:] != -100).sum())
            nats, tokens = nats + loss.item() * scored, tokens + scored
    return of_text(time.perf_counter() - started, nats / tokens)


def of_choices(seconds: float, right: list[bool], logs: list[list[float]]) -> Found:
    """right: of each row. logs: log-probabilities of each row's choices."""
    ties = [row.count(max(row)) > 1 for row in logs]
    scores = {"accuracy": statistics.mean(right), "ties": statistics.mean(ties)}
    return Found(seconds, scores, [log for row in logs for log in row])


def of_text(seconds: float, loss: float) -> Found:
    return Found(seconds, {"perplexity": math.exp(loss)}, [loss])


# What starts them.


def in_own_process(job: Job, windows_at_once: int | None = None) -> Found:
    """Return what gptcli says or, with a number of windows, transformers."""
    command = [sys.executable, __file__, "--job", json.dumps([asdict(job), windows_at_once])]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Found(**json.loads(output.splitlines()[-1]))


def harness_side(job: Job, batch_size: int, python: Path) -> Found:
    """Return what lm-evaluation-harness says."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        options = {
            "--model": job.model,
            "--data": job.data,
            "--out": str(out),
            "--limit": str(job.limit),
            "--batch-size": str(batch_size),
            "--dtype": {"bf16": "bfloat16", "fp32": "float32"}[job.precision],
        }
        command = [str(python), str(HARNESS), *(text for option in options.items() for text in option)]
        run = subprocess.run(
            [*command, "--tasks", *HARNESS_TASKS[job.name]], capture_output=True, text=True
        )
        if run.returncode:
            sys.exit(run.stderr)
        tasks = json.loads(out.read_text())["tasks"].values()
    rows = [row for task in tasks for row in task["items"]]
    seconds = sum(task["seconds"] for task in tasks)
    return of_choices(seconds, [row["acc"] for row in rows], [row["log_likelihoods"] for row in rows])


def compare(job: Job, sample: Job, rounds: int, harness_python: Path) -> None:
    """Print one comparison."""
    other = "lm-eval" if job.is_choices else "transformers"

    def other_side(job: Job, at_once: int) -> Found:
        if job.is_choices:
            return harness_side(job, at_once, harness_python)
        return in_own_process(job, at_once)

    choices = BATCH_SIZES if job.is_choices else WINDOWS_AT_ONCE
    tried = {at_once: other_side(sample, at_once).seconds for at_once in choices}
    best = min(tried, key=tried.__getitem__)
    listed = ", ".join(f"{at_once}: {seconds:.1f}" for at_once, seconds in tried.items())
    print(f"{job.name}: {other} needs for a sample, by what goes through at once, {listed} s")
    sides: dict[str, Callable[[], Found]] = {
        f"{other}, {best} at once": lambda: other_side(job, best),
        "gptcli": lambda: in_own_process(job),
    }
    found: dict[str, list[Found]] = {side: [] for side in sides}
    for number in range(rounds):
        # Neither always comes first.
        for side in list(sides)[:: 1 if number % 2 else -1]:
            found[side].append(sides[side]())
    medians = []
    for side, runs in found.items():
        medians.append(statistics.median(run.seconds for run in runs))
        each = ", ".join(f"{run.seconds:.1f}" for run in runs)
        scores = ", ".join(f"{name} {value:.4f}" for name, value in runs[0].scores.items())
        print(f"  {side:26} {medians[-1]:6.1f} s ({each}); {scores}")
    print(f"  gptcli is {medians[0] / medians[1]:.2f} times as fast", flush=True)


def check(job: Job, harness_python: Path) -> None:
    """Print how far the two sides are apart."""
    ours = in_own_process(job)
    theirs = harness_side(job, 16, harness_python) if job.is_choices else in_own_process(job, 1)
    apart = max(abs(a - b) for a, b in zip(ours.values, theirs.values, strict=True))
    print(f"{job.name}: {len(ours.values)} values in {job.precision}, at most {apart:.1e} nats apart")
    print(f"  gptcli {ours.scores}, the other {theirs.scores}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(LIMITS)}; default: all")
    parser.add_argument("--limit", type=int, help="rows of each task, or tokens of the text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="compare values in float32, not the time")
    parser.add_argument("--model", help="a model folder; default: one of random weights is made")
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--harness-python", type=Path, default=HARNESS_PYTHON)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        facts, windows_at_once = json.loads(options.job)
        job = Job(**facts)
        side = gptcli_side(job) if windows_at_once is None else transformers_side(job, windows_at_once)
        print(json.dumps(asdict(side)))
        return
    names = options.names or list(LIMITS)
    if not set(names) <= LIMITS.keys():
        parser.error(f"there is {', '.join(LIMITS)}, but not all of {', '.join(names)}")
    for path in (Path(options.data), options.harness_python):
        if not path.exists():
            sys.exit(f"{path} is not there; see the top of {__file__}. Nothing was measured.")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model
        if model is None:
            save_model("124m", Path(options.data), Path(folder))
            model = folder
        print(f"bfloat16 matrix products here: {matrix_rate() / 1e9:.0f} GFLOP/s", flush=True)
        for name in names:
            sample = Job(name, SMALL_LIMITS[name], model, options.data, "bf16")
            limited = replace(sample, limit=options.limit or LIMITS[name])
            if options.check:
                check(
                    replace(sample, limit=options.limit or sample.limit, precision="fp32"),
                    options.harness_python,
                )
            else:
                compare(limited, sample, options.rounds, options.harness_python)


def matrix_rate() -> float:
    """Return the operations a second of a product of matrices, which nothing can be faster than."""
    size = 2048
    matrix = torch.randn(size, size, dtype=torch.bfloat16)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(seconds)


if __name__ == "__main__":
    main()
