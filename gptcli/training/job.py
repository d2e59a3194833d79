"""A job: a task with all that a run of it needs. Each task makes its own; the run is one for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from gptcli.config.schema import Settings
from gptcli.training.loop import Task

# In the names of weights that stand beside the model's own while it is trained (models/adapters).
ADAPTER_MARK = "lora_"

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Evaluation:
    """How good the model is on the held-out data."""

    scores: dict[str, float]
    """"loss" among them."""
    details: dict[str, Any] = field(default_factory=dict)
    """What is no single number: scores a label, a confusion matrix; JSON."""


class EvaluatedTask(Task, Protocol):
    """A task with a score that decides which model is the best."""

    best_by: str
    """Name of that score: "loss", or one that is better when higher; a tie goes to the lower loss."""

    def compile_loss(self) -> None:
        """Let what comes behind the model's layers be compiled by torch.compile, if that is worth it."""

    def evaluate(
        self, model: nn.Module, micro_batch_size: int, between_batches: Callable[[], None]
    ) -> Evaluation | None:
        """Return the scores on held-out data; None without data.

        Calls `between_batches` often, and lets what it raises pass.
        """


@dataclass(frozen=True)
class DataSize:
    """One split."""

    tokens: int
    examples: int | None = None
    """None for running text."""


@dataclass(frozen=True)
class Sample:
    """A prompt, and what the model, as it was, wrote after it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Job:
    """What is trained on what, put together and checked."""

    settings: Settings
    """With what the model and the data decide filled in."""
    task: EvaluatedTask
    model: nn.Module
    """On its device."""
    is_new: bool
    """Whether the model, or its head, has learnt nothing yet; another is scored before the first step,
    so that people see what the training changes, and keep the model if it does it no good."""
    tokenizer: PreTrainedTokenizerFast
    save_model: Callable[[Path], None]
    """Writes the model folder, as it is now, to a path."""
    micro_batch_size: int
    steps_per_epoch: float
    data_fingerprint: str
    tokenizer_fingerprint: str
    train: DataSize
    validation: DataSize
    facts: dict[str, Any]
    """What run.json says of it."""
    ledger: dict[str, Any]
    """data.json: what became of all that was read."""
    summary: list[tuple[str, str]]
    """The data, for people: (what, how much)."""
    write_samples: Callable[[Callable[[], None]], list[Sample]] | None = None
    """Returns what the model, as it is now, writes after evaluation.sample_prompts. Calls what it is
    given before each, and lets what that raises pass. None without prompts.
    """


def count_parameters(model: nn.Module) -> int:
    """Return the number of the model's weights, without adapters; embedding and head share theirs."""
    return sum(p.numel() for name, p in model.named_parameters() if ADAPTER_MARK not in name)


def count_trained_parameters(model: nn.Module) -> int:
    """Return the number of weights that training changes, those of adapters among them."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
