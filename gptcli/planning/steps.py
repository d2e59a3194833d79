"""How many optimizer steps a training has."""

from __future__ import annotations

import math

from gptcli.config.schema import USEFUL_EPOCHS, TrainingSettings


def planned_steps(
    training: TrainingSettings, parameters: int, tokens_per_step: int, steps_per_epoch: float | None
) -> int | None:
    """Return what max_steps, epochs or tokens_per_parameter mean, whichever is set.

    parameters: of the model. steps_per_epoch: None if it is not known; then None is returned for epochs.
    """
    if training.epochs is not None:
        return None if steps_per_epoch is None else max(1, math.ceil(training.epochs * steps_per_epoch))
    if training.tokens_per_parameter is not None:
        steps = training.tokens_per_parameter * parameters / tokens_per_step
        if steps_per_epoch is not None:
            steps = min(steps, USEFUL_EPOCHS * steps_per_epoch)
        return max(1, math.ceil(steps))
    return training.max_steps
