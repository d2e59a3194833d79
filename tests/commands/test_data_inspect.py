"""`gptcli data inspect`: what a training would be told about its data, without the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import SENTENCES, Cli

CONFIG = """\
task: {task}
model: {{n_layer: 2, n_head: 2, n_embd: 32, context_length: 64}}
tokenizer: {{train: {{vocab_size: 300}}}}
data: {{source: rows.jsonl, validation_fraction: 0.2}}
training: {{max_steps: 2, batch_size: 4}}
runtime: {{device: cpu, precision: fp32}}
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"text": s, "label": s.split()[2], "prompt": s, "completion": "Yes."} for s in SENTENCES]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    return file


@pytest.mark.parametrize("task", ["classification", "instruction", "language-modelling"])
def test_it_says_what_the_training_says_and_writes_no_run(
    rows: Path, gptcli: Cli, tmp_path: Path, task: str
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(task=task))
    shown = gptcli("data", "inspect", "--config", "config.yaml")
    assert shown.returncode == 0, shown.stderr
    title, *facts = shown.stdout.splitlines()
    assert title == f"{task}:"
    assert not (tmp_path / "runs").exists()
    trained = gptcli("finetune", "--config", "config.yaml", "--output-dir", "run")
    assert trained.returncode == 0, trained.stderr
    for fact in facts:
        assert fact in trained.stderr.splitlines()
    printed = gptcli("data", "inspect", "--config", "config.yaml", "--json")
    ledger = json.loads((tmp_path / "run" / "data.json").read_text())
    assert json.loads(printed.stdout) == {"task": task, **ledger}


def test_it_needs_no_device_that_the_training_needs(rows: Path, gptcli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="classification"))
    shown = gptcli("data", "inspect", "--config", "config.yaml", "--set", "runtime.device=cuda")
    assert shown.returncode == 0, shown.stderr
    assert "repeated       1 training examples have the input of another" in shown.stdout


def test_it_refuses_what_the_training_would(gptcli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": ""}\n')
    (tmp_path / "config.yaml").write_text(CONFIG.format(task="classification"))
    shown = gptcli("data", "inspect", "--config", "config.yaml")
    assert (shown.returncode, shown.stdout) == (3, "")
    assert shown.stderr == (
        "Error: rows.jsonl:1: the label is blank. Give it one, or leave the row out.\n"
    )
