from __future__ import annotations

import pytest

from gptcli.config.schema import TrainingSettings
from gptcli.training.schedule import learning_rate


def rates(steps: list[int], **settings: object) -> list[float]:
    training = TrainingSettings.model_validate({"learning_rate": 1e-3, **settings})
    return [learning_rate(step, training) for step in steps]


def test_the_rate_warms_up_linearly_and_then_falls_by_half_a_cosine() -> None:
    # After the warm-up of 4 steps: 0.1 + 0.9 * (1 + cos(pi * k / 8)) / 2 of the peak, k = 1 ... 8.
    assert rates(
        [0, 1, 2, 3, 4, 7, 11], max_steps=12, warmup_steps=4, min_learning_rate_ratio=0.1
    ) == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 9.657458e-4, 5.5e-4, 1e-4], rel=1e-6)


def test_without_warm_up_the_first_step_is_on_the_cosine() -> None:
    assert rates([0, 1], max_steps=2, warmup_steps=0, min_learning_rate_ratio=0.0) == pytest.approx(
        [5e-4, 0.0], abs=1e-12
    )


def test_a_warm_up_longer_than_the_run_reaches_the_peak_at_the_last_step() -> None:
    assert rates([0, 4, 9], max_steps=10, warmup_steps=100) == pytest.approx([1e-4, 5e-4, 1e-3])


def test_a_floor_at_the_peak_is_a_constant_rate() -> None:
    assert rates([0, 5, 9], max_steps=10, warmup_steps=0, min_learning_rate_ratio=1.0) == [1e-3] * 3


def test_wsd_stays_at_the_peak_and_falls_in_a_line_over_the_last_steps() -> None:
    # Of 10 steps, the last 4 fall: by a quarter of the way from the peak to a tenth of it each.
    assert rates(
        [0, 1, 5, 6, 7, 8, 9],
        schedule="wsd",
        decay_ratio=0.4,
        max_steps=10,
        warmup_steps=2,
        min_learning_rate_ratio=0.1,
    ) == pytest.approx([5e-4, 1e-3, 1e-3, 7.75e-4, 5.5e-4, 3.25e-4, 1e-4])


def test_a_decay_as_long_as_the_run_begins_behind_the_warm_up() -> None:
    assert rates(
        [1, 2, 3, 5], schedule="wsd", decay_ratio=1.0, max_steps=6, warmup_steps=2
    ) == pytest.approx([1e-3, 7.75e-4, 5.5e-4, 1e-4])
