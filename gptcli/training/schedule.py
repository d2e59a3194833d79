"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from gptcli.config.schema import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the rate for optimizer step `step`, which counts from 0.

    Linear from peak / warmup_steps to the peak; from there to the peak times min_learning_rate_ratio,
    which the last step reaches: as half a cosine (Loshchilov and Hutter, SGDR, 2017), or, with the
    schedule wsd, at the peak and then linear over the last decay_ratio of the steps (warm-up, stable,
    decay: Hu et al., MiniCPM, 2024).
    """
    peak = settings.learning_rate
    warmup = min(settings.warmup_steps, settings.max_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    left = (settings.max_steps - step - 1) / (settings.max_steps - warmup)
    if settings.schedule == "cosine":
        share = (1 - math.cos(math.pi * max(0.0, left))) / 2
    else:
        decay = min(1.0, settings.decay_ratio * settings.max_steps / (settings.max_steps - warmup))
        share = min(1.0, max(0.0, left) / decay)
    floor = settings.min_learning_rate_ratio
    return peak * (floor + (1 - floor) * share)
