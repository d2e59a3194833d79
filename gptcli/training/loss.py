"""The loss of next-token prediction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gptcli.data.batches import IGNORED


def summed_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the sum, in nats, of the cross-entropies of all targets that are not IGNORED.

    logits: (sequences, tokens, vocabulary). targets: (sequences, tokens).
    A sum, not a mean: micro-batches with different numbers of targets add up to the batch's mean only
    when they are divided by the number of targets of the whole batch.
    """
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
