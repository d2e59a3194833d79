"""Short runs, and what it means that two of them are the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.training.checkpoint import find_problem, list_checkpoints, step_of
from tests.conftest import TEXT
from tests.reliability.conftest import CommandServer, Ended

STEPS = 6
TIMES = ("training_seconds", "elapsed_seconds")


@dataclass(frozen=True)
class RunSettings:
    """The config of a run of six steps, saved after each and evaluated after every second."""

    root: Path

    @property
    def file(self) -> Path:
        return self.root / "settings.yaml"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def write(self) -> None:
        text = self.root / "text.txt"
        text.write_text(TEXT)
        self.file.write_text(
            f"""\
model: {{n_layer: 2, n_head: 2, n_embd: 32, context_length: 32, dropout: 0.1}}
tokenizer:
  train: {{vocab_size: 300}}
data: {{source: {text}, cache_dir: {self.cache}}}
training: {{max_steps: {STEPS}, batch_size: 4, optimizer: adamw, learning_rate: 1e-3, warmup_steps: 2,
  save_steps: 1}}
evaluation: {{eval_steps: 2}}
runtime: {{device: cpu, precision: fp32, threads: 1}}
logging: {{log_steps: 1}}
"""
        )

    def run(self, server: CommandServer, folder: Path, *options: str, **how: Any) -> Ended:
        """Run `gptcli pretrain` into `folder`."""
        return server.run(
            "pretrain", "--config", self.file, "--output-dir", folder, *options, root=self.root, **how
        )

    def forget_preparation(self) -> None:
        """Let the next run prepare its data again."""
        shutil.rmtree(self.cache, ignore_errors=True)


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what the clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def progress_in(run: Path) -> dict[str, Any]:
    """Return the progress in the last checkpoint, without what the clock decides."""
    state = run / "checkpoints" / f"step-{STEPS:08d}" / "state.json"
    progress = json.loads(state.read_text())["progress"]
    return {key: value for key, value in progress.items() if key not in TIMES}


def file_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_same_run(run: Path, whole: Path) -> None:
    """Check files, metrics, the model, and the last checkpoint's weights and optimizer state."""
    assert file_names(run) == file_names(whole)
    assert metrics_of(run) == metrics_of(whole)
    last = f"checkpoints/step-{STEPS:08d}"
    for name in (f"{last}/model.safetensors", f"{last}/optimizer.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    for file in (whole / "model").iterdir():
        assert (run / "model" / file.name).read_bytes() == file.read_bytes(), file.name
    ended = json.loads((run / "run.json").read_text())
    assert ended["ended"] == "finished: training.max_steps"
    assert ended["best_evaluation"] == json.loads((whole / "run.json").read_text())["best_evaluation"]


def assert_all_checkpoints_are_whole(run: Path) -> None:
    problems = {path.name: find_problem(path) for path in list_checkpoints(run / "checkpoints")}
    assert set(problems.values()) <= {None}, problems


def assert_nothing_acknowledged_is_lost(run: Path, acknowledged: list[str], keep: int = 2) -> None:
    """Check that of what was said to be saved, all is whole that rotation may not have removed."""
    assert_all_checkpoints_are_whole(run)
    there = {step_of(path) for path in list_checkpoints(run / "checkpoints")}
    promised = {step_of(Path(name)) for name in acknowledged}
    assert set(sorted(there | promised)[-keep:]) <= there, (acknowledged, there)
