"""How long parts of a step took here: what a plan takes its time from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """What a few real steps took; each figure is the mean of several."""

    micro_batch_seconds: float
    """Forward and backward pass of one micro-batch."""
    micro_batch_tokens: float
    """Mean; no padding."""
    update_seconds: float
    """Clipping and the optimizer."""
    evaluation_seconds: float
    """Forward pass alone of as many tokens."""
    peak_bytes: int | None
    """The most memory held so far by this process (on a GPU: by its tensors); None if it is not told."""

    def step_seconds(self, micro_batches: int) -> float:
        return micro_batches * self.micro_batch_seconds + self.update_seconds
