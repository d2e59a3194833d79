"""Memory that really runs out, and that micro-batches change no number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.config.loading import load_settings
from gptcli.pipelines.train import Event, run_training
from gptcli.tasks.language_modelling import LanguageModelling
from gptcli.training.loop import MicroBatchHalved
from tests.conftest import REPOSITORY, TEXT
from tests.pipelines.test_train import metrics_of, pretrain, read_json, weights_in

# For the first step, gives the process 150 MB more than it has; prints the micro-batch size after each
# halving, and the error.
TRAIN_IN_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
from gptcli.config.loading import load_settings
from gptcli.errors import GptcliError
from gptcli.pipelines.train import run_training
from gptcli.training.loop import MicroBatchHalved, StepDone
from gptcli.training.run import Started

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

def watch(event):
    if isinstance(event, Started):
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 150_000_000, resource.RLIM_INFINITY))
    if isinstance(event, StepDone):  # The threads of a save ask for much that they do not use.
        resource.setrlimit(resource.RLIMIT_AS, UNLIMITED)
    if isinstance(event, MicroBatchHalved):
        sizes.append(event.micro_batch_size)

# Addresses that a process keeps for later would serve instead.
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**31, resource.RLIM_INFINITY))
config, run, *assignments = json.loads(sys.argv[1])
sizes, error = [], None
try:
    run_training(load_settings(Path(config), assignments), Path(run), notify=watch)
except GptcliError as problem:
    error = [problem.exit_code, str(problem)]
print(json.dumps({"sizes": sizes, "error": error}))
"""


def train_in_little_memory(job: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_IN_LITTLE_MEMORY, json.dumps(job)],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.PIPE,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_memory_that_really_runs_out_halves_the_micro_batch_or_is_said(
    config_file: Path, text_file: Path, tmp_path: Path
) -> None:
    text_file.write_text(TEXT * 10)
    settings = ["training.max_steps=2", "training.batch_size=160", "model.context_length=256"]
    # One sequence: 4,096 x 2,048 numbers of 4 bytes, 34 MB, and that several times in each block.
    too_large = ["model.context_length=4096", "model.n_embd=512", "training.batch_size=2"]
    too_large.append("training.micro_batch_size=2")
    # In a process each: what one has freed would serve the other.
    small, large = (
        train_in_little_memory([str(config_file), str(tmp_path / name), *of_run])
        for name, of_run in (("auto", settings), ("large", too_large))
    )

    assert small["error"] is None
    assert small["sizes"], "memory has not run out: nothing is tested"
    assert small["sizes"] == [160 >> halvings for halvings in range(1, len(small["sizes"]) + 1)]
    size = small["sizes"][-1]
    assert read_json(tmp_path / "auto" / "run.json")["micro_batch_size"] == size
    pretrain(config_file, tmp_path / "set", *settings, f"training.micro_batch_size={size}")
    losses = [[entry["loss"] for entry in metrics_of(tmp_path / run)] for run in ("auto", "set")]
    assert len(losses[0]) == 3  # Two steps and an evaluation.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6, abs=0)

    assert large["sizes"] == [1]
    exit_code, message = large["error"]
    assert exit_code == 5
    assert message.startswith("Out of memory with a single sequence at once. What helps: ")
    assert read_json(tmp_path / "large" / "run.json")["ended"] == "stopped: EnvironmentProblem"

    # What was found to fit is remembered.
    events: list[Event] = []
    settings[0] = "training.max_steps=3"
    run_training(
        load_settings(config_file, settings), tmp_path / "auto", resume=True, notify=events.append
    )
    assert not [event for event in events if isinstance(event, MicroBatchHalved)]
    assert read_json(tmp_path / "auto" / "run.json")["micro_batch_size"] == size


def test_memory_that_runs_out_in_an_evaluation_halves_the_micro_batch(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than any machine has, asked for where an evaluation of more than two sequences asks for it.
    evaluate = LanguageModelling.evaluate

    def greedy(self: LanguageModelling, model: Any, size: int, between: Any) -> Any:
        if size > 2:
            torch.empty(2**52)
        return evaluate(self, model, size, between)

    monkeypatch.setattr(LanguageModelling, "evaluate", greedy)
    events: list[Event] = []
    settings = ["training.max_steps=3", "training.batch_size=8", "training.micro_batch_size=8"]
    pretrain(config_file, tmp_path / "run", *settings, events=events)
    halved = [event.micro_batch_size for event in events if isinstance(event, MicroBatchHalved)]
    assert halved == [4, 2]
    monkeypatch.undo()
    settings[2] = "training.micro_batch_size=2"
    pretrain(config_file, tmp_path / "other", *settings)
    scores = [metrics_of(tmp_path / run)[-1] for run in ("run", "other")]
    assert scores[0]["split"] == "validation"
    # Muon multiplies in bfloat16, which makes the last digits larger.
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-5, abs=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulating_1x8_equals_4x2_sequences(
    config_file: Path, tmp_path: Path, optimizer: str
) -> None:
    settings = ["training.batch_size=8", f"training.optimizer={optimizer}"]
    for micro_batch_size in (8, 2):
        run = tmp_path / str(micro_batch_size)
        pretrain(config_file, run, *settings, f"training.micro_batch_size={micro_batch_size}")
    whole, parts = metrics_of(tmp_path / "8"), metrics_of(tmp_path / "2")
    assert len(whole) == 8  # Six steps and two evaluations.
    # Muon multiplies in bfloat16, which makes the last digits larger.
    tolerance = 1e-5 if optimizer == "muon" else 1e-6
    for one, other in zip(whole, parts, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=tolerance, abs=0)
    if optimizer == "muon":
        return
    norms = [[entry["grad_norm"] for entry in entries if "lr" in entry] for entries in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-6, abs=0)
    expected, got = weights_in(tmp_path / "8" / "model"), weights_in(tmp_path / "2" / "model")
    assert expected.keys() == got.keys()
    for name, weight in expected.items():
        difference = got[name] - weight
        if name.endswith("attn.c_attn.bias"):
            # The keys' third in the middle: softmax does not see it, so that its gradient is rounding
            # alone, which AdamW brings to the size of all others.
            difference[32:64] = 0
        assert difference.norm() <= 1e-6 * weight.norm(), name
