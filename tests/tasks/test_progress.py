"""How far the making of examples is, is told for every task that has rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.loading import load_settings
from gptcli.config.schema import RuntimeSettings
from gptcli.data.progress import PreparationProgress
from gptcli.tasks.table import build_job
from gptcli.training.device import choose_compute

ROWS: dict[str, dict[str, Any]] = {
    "classification": {"text": "The cat sat. {}", "label": "cat"},
    "instruction": {"instruction": "Who sat? {}", "output": "The cat."},
    "question-answering": {
        "question": "Who sat?",
        "context": "The cat sat. {}",
        "answers": {"text": ["cat"], "answer_start": [4]},
    },
}


@pytest.mark.parametrize("task", ROWS)
def test_examples_are_counted_while_they_are_made(tmp_path: Path, task: str) -> None:
    file = tmp_path / "rows.jsonl"
    # Each is another input, so that so many are held out.
    rows = [json.dumps(ROWS[task]).replace("{}", str(n)) for n in range(3009)]
    rows.append(rows[0].replace("cat", "dog"))  # Two labels.
    file.write_text("\n".join(rows))
    settings = load_settings(
        None,
        [
            f"task={task}",
            f"data.source={file}",
            "data.validation_fraction=0.5",
            "model={n_layer: 1, n_head: 1, n_embd: 8, context_length: 64}",
            "tokenizer.train.vocab_size=280",
        ],
        environment={},
    )
    seen: list[PreparationProgress] = []
    compute = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)
    job = build_job(settings, compute, seen.append)
    made = [one for one in seen if one.stage.startswith("making")]
    assert made == [
        PreparationProgress("making training examples", 1000, job.train.examples or 0, "rows"),
        PreparationProgress("making held-out examples", 1000, job.validation.examples or 0, "rows"),
    ]
