from __future__ import annotations

import math

import pytest
import torch

from gptcli.data.batches import IGNORED
from gptcli.training.loss import summed_cross_entropy

# Probabilities of three tokens at each of 2 x 2 positions.
LOGITS = torch.tensor(
    [[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [[0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]]]
).log()


@pytest.mark.parametrize(
    ("targets", "probabilities"),
    [
        ([[0, 1], [2, 0]], [0.5, 0.2, 0.1, 1 / 3]),
        ([[0, IGNORED], [2, IGNORED]], [0.5, 0.1]),
        ([[IGNORED, IGNORED], [IGNORED, IGNORED]], []),
    ],
)
def test_the_loss_is_the_sum_of_minus_log_probabilities_of_the_targets_that_are_scored(
    targets: list[list[int]], probabilities: list[float]
) -> None:
    loss = summed_cross_entropy(LOGITS, torch.tensor(targets))
    assert loss.item() == pytest.approx(sum(-math.log(p) for p in probabilities), abs=1e-6)


def test_logits_of_low_precision_are_summed_in_float32() -> None:
    # About 4500, where neighbours in bfloat16 are 32 apart.
    loss = summed_cross_entropy(
        torch.zeros(1, 4096, 3, dtype=torch.bfloat16), torch.zeros(1, 4096, dtype=torch.int64)
    )
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * math.log(3), rel=1e-5)
