"""Run folders as training writes them, made by hand: for tests of what reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gptcli.config.loading import dump_settings
from gptcli.config.schema import Settings

SAMPLE = "Once upon a time"


def run_facts(**changes: Any) -> dict[str, Any]:
    """Return a run.json of a pretraining of 100 steps."""
    return {
        "command": ["/usr/bin/gptcli", "pretrain", "--config", "my config.yaml"],
        "working_directory": "/home/me",
        "task": "language-modelling",
        "parameters": 5_322_240,
        "trained_parameters": 5_322_240,
        "fingerprints": {"data": "d" * 64, "tokenizer": "f" * 64},
        "start": "a new GPT-2",
        "versions": {"gptcli": "0.1.0", "torch": "2.13.0"},
        "hardware": {
            "platform": "Linux",
            "cpu": "A processor",
            "device": "cpu",
            "device_reason": "as set",
            "precision": "fp32",
            "precision_reason": "as set",
            "cpu_threads": 2,
        },
        "started": "2026-01-02T03:04:05+00:00",
        "started_at_step": 0,
        "ended": "finished: training.max_steps",
        "updated": "2026-01-02T04:04:05+00:00",
        "step": 100,
        "tokens": 100_000,
        "micro_batch_size": 16,
        "steps_skipped": 0,
        "training_seconds": 50.0,
        "elapsed_seconds": 65.0,
        "best_evaluation": {"step": 100, "loss": 2.0, "perplexity": 7.389, "bits_per_byte": 1.25},
        **changes,
    }


def step_line(step: int, loss: float, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": 1000 * step,
        "loss": loss,
        "lr": 1e-4,
        "grad_norm": 0.5,
        "tokens_per_second": 2000.0,
        **changes,
    }


def evaluation_line(step: int, **scores: Any) -> dict[str, Any]:
    return {"step": step, **scores, "tokens": 1000 * step, "split": "validation"}


def pretraining_lines(steps: int = 100, *, prompt: str = SAMPLE) -> list[dict[str, Any]]:
    """Return metrics of a loss that falls from 8, with an evaluation and a sample every 25 steps."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 2 + 6 * math.exp(-step / 20) + 0.1 * math.sin(step)
        lines.append(step_line(step, loss))
        if step % 25 == 0:
            scores = {"loss": loss + 0.1, "perplexity": math.exp(loss + 0.1), "bits_per_byte": loss / 2}
            lines.append(evaluation_line(step, **scores))
            lines.append({"step": step, "samples": [{"prompt": prompt, "text": f" text of {step}"}]})
    return lines


def classification_lines(labels: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Return metrics with one evaluation. labels: {label: its row of the confusion matrix}."""
    per_label = {
        name: {"precision": 0.8, "recall": 0.8, "f1": 0.8, "support": sum(row)}
        for name, row in labels.items()
    }
    right = sum(row[n] for n, row in enumerate(labels.values()))
    accuracy = right / sum(map(sum, labels.values()))
    scores = {"loss": 0.5, "accuracy": accuracy, "macro_f1": 0.8}
    details = {"per_label": per_label, "confusion": list(labels.values())}
    return [
        *(step_line(step, 1 / step) for step in range(1, 101)),
        evaluation_line(100, **scores, **details),
    ]


def write_run(
    path: Path,
    *,
    settings: Settings | None = None,
    lines: list[dict[str, Any]] | None = None,
    ledger: dict[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """Write a run folder and return it."""
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(run_facts(**facts)))
    (path / "config.yaml").write_text(dump_settings(settings or Settings()))
    default = {
        "sources": ["text.txt"],
        "reading": {"documents": 3, "byte_order_marks_removed": 0},
        "train": {"documents": 2, "tokens": 50_000},
    }
    (path / "data.json").write_text(json.dumps(default if ledger is None else ledger))
    metrics = pretraining_lines() if lines is None else lines
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return path
