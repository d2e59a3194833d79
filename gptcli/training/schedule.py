"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from gptcli.config.schema import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the rate for optimizer step `step`, which counts from 0.

    Linear from peak / warmup_steps to the peak, then half a cosine to the peak times
    min_learning_rate_ratio, which the last step reaches (Loshchilov and Hutter, SGDR, 2017).
    """
    peak = settings.learning_rate
    warmup = min(settings.warmup_steps, settings.max_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup + 1) / (settings.max_steps - warmup)
    floor = settings.min_learning_rate_ratio
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
