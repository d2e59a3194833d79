"""What a run folder says of its run, read back. Whatever else holds, what cannot be read is said."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gptcli.config.loading import load_settings
from gptcli.config.schema import Settings
from gptcli.errors import ConfigError, ModelError
from gptcli.training.run_folder import RunFolder

RUNS = Path("runs")
"""Where runs are that no --output-dir was given for."""

# In this order, the first that a task has says most of its model.
MAIN_SCORES = ("bits_per_byte", "macro_f1", "f1", "mean_squared_error", "loss")


class RunFacts(BaseModel):
    """run.json."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    command: list[str]
    task: str
    parameters: int
    """Of the model."""
    trained_parameters: int
    """Of the model and of adapters."""
    fingerprints: dict[str, str]
    """Of "data" and "tokenizer"."""
    start: str = ""
    tokenizer: dict[str, Any] = {}
    compiled: str = ""
    """Whether by torch.compile, and why."""
    versions: dict[str, str]
    hardware: dict[str, Any]
    started: datetime.datetime
    """Of the last session."""
    ended: str
    problem: str | None = None
    updated: datetime.datetime
    step: int
    tokens: int
    micro_batch_size: int
    steps_skipped: int
    training_seconds: float
    elapsed_seconds: float
    best_evaluation: dict[str, float] | None

    @property
    def main_score(self) -> tuple[str, float] | None:
        """The name and the value of the score to tell runs by; None before the first evaluation."""
        best = self.best_evaluation or {}
        return next(((name, best[name]) for name in MAIN_SCORES if name in best), None)


@dataclass(frozen=True)
class SampleSet:
    """What the model wrote after a step."""

    step: int
    texts: list[tuple[str, str]]
    """(prompt, text)."""


@dataclass
class MetricLines:
    """metrics.jsonl, sorted by what its lines are of."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    samples: list[SampleSet] = field(default_factory=list)
    damaged: int = 0
    """Lines that are none of these."""


class RunRecord:
    """One run, as its folder tells it."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if there is no run at `path`, ModelError if its run.json is damaged."""
        self.folder = RunFolder(path)
        file = self.folder.run
        try:
            text = file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{path} holds no run: {file.name} is not there.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file} cannot be read: {error}.") from None
        try:
            self.facts = RunFacts.model_validate(json.loads(text))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "its content"
            raise ModelError(f"{file} is damaged: {where}: {problem['msg']}.") from None
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{file} is damaged: it is no JSON ({error}).") from None

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @cached_property
    def settings(self) -> Settings | None:
        """config.yaml; None if it cannot be read any more."""
        try:
            return load_settings(self.folder.config, environment={})
        except ConfigError:
            return None

    @cached_property
    def ledger(self) -> dict[str, Any]:
        """data.json; empty if it cannot be read."""
        try:
            ledger = json.loads(self.folder.ledger.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return ledger if isinstance(ledger, dict) else {}

    @cached_property
    def metrics(self) -> MetricLines:
        found = MetricLines()
        for line in self._lines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                found.damaged += 1
            elif "split" in entry:
                found.evaluations.append(entry)
            elif "samples" in entry:
                found.samples.append(SampleSet(entry["step"], _texts(entry["samples"])))
            elif "skipped" in entry:
                found.skipped.append(entry)
            else:
                found.steps.append(entry)
        return found

    @property
    def state(self) -> str:
        """How the run ended, in a few words: "finished", "interrupted", "diverged", "failed", or
        "running", or "killed" if its process has gone without a word.
        """
        kind, _, what = self.facts.ended.partition(": ")
        if kind == "running":
            return "running" if self.folder.is_in_use() else "killed"
        if kind == "stopped":
            names = {
                "InterruptedRun": "interrupted",
                "KeyboardInterrupt": "interrupted",
                "Diverged": "diverged",
            }
            return names.get(what, "failed")
        return kind

    @property
    def reason(self) -> str:
        """What ended the run: the setting whose limit it reached, or the problem."""
        return self.facts.problem or self.facts.ended.partition(": ")[2]

    @cached_property
    def best_evaluation_line(self) -> dict[str, Any] | None:
        """The line of metrics.jsonl of the best evaluation, with its details; None without one."""
        best = self.facts.best_evaluation
        if best is None:
            return None
        return next((e for e in reversed(self.metrics.evaluations) if e["step"] == best["step"]), None)

    @property
    def repeating_command(self) -> list[str]:
        """The command that runs the config again."""
        verb = self.facts.command[1] if len(self.facts.command) > 1 else ""
        if verb not in ("pretrain", "finetune"):
            verb = "finetune"  # Which takes every task, and a new model too.
        return ["gptcli", verb, "--config", str(self.folder.config)]

    def _lines(self) -> list[str]:
        try:
            return self.folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def find_run(name: str) -> RunRecord:
    """Return the run at a path, or of that name in runs/. Raises ConfigError, ModelError."""
    path = Path(name)
    if not path.exists() and (RUNS / name).is_dir():
        path = RUNS / name
    return RunRecord(path)


def trained_phrase(parameters: int, trained: int) -> str:
    """Return how many weights are trained, beside those that the model has."""
    return "all trained" if trained == parameters else f"{trained:,} trained"


def number(value: object) -> float | None:
    """Return a value of a log if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def _texts(samples: object) -> list[tuple[str, str]]:
    if not isinstance(samples, list):
        return []
    return [
        (str(sample["prompt"]), str(sample["text"]))
        for sample in samples
        if isinstance(sample, dict) and {"prompt", "text"} <= sample.keys()
    ]
