"""Looking at data: what a training would learn from, without the training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptcli.config.schema import Settings
from gptcli.data.preparation import PreparationProgress
from gptcli.tasks.table import build_job
from gptcli.training.device import choose_compute


@dataclass(frozen=True)
class Inspection:
    """What is known of the data before anything is trained on it."""

    summary: list[tuple[str, str]]
    """(what, how much), for people."""
    ledger: dict[str, Any]
    """What the run's data.json would say."""


def inspect_data(
    settings: Settings, notify: Callable[[PreparationProgress], None] = lambda event: None
) -> Inspection:
    """Read and check the data as a training with these settings would, and write nothing but its cache.

    Raises DataError, ConfigError or ModelError, as the training would.
    """
    # The device decides nothing about the data, and need not be here.
    runtime = settings.runtime.model_copy(update={"device": "cpu", "precision": "fp32"})
    compute = choose_compute(runtime, for_training=False)
    job = build_job(settings, compute, notify)
    return Inspection(job.summary, job.ledger)
