"""The loss of next-token prediction, and its gradients, without ever holding the scores of all tokens.

Scores over the vocabulary are the largest tensor of a training step by far. Here they are made for some
rows at a time; the gradients of the loss follow from them at once (softmax less target, as everywhere),
so that nothing of their size is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptcli.data.batches import IGNORED

# Rows whose scores are in memory at once: enough for the matrix units, few enough for a CPU's cache.
ROWS = {"cpu": 512}
ROWS_GPU = 4096


def summed_head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Return the sum, in nats, of the cross-entropies of all targets that are not IGNORED.

    hidden: (sequences, tokens, width), of the last layer norm. weight: (vocabulary, width), of the head.
    targets: (sequences, tokens). Products are made in the type of autocast, all else in float32.
    A sum, not a mean: micro-batches with different numbers of targets add up to the batch's mean only
    when they are divided by the number of targets of the whole batch.
    """
    asked = targets.flatten() != IGNORED
    rows, chosen = hidden.flatten(0, 1), targets.flatten()
    if not asked.all():
        rows, chosen = rows[asked], chosen[asked]
    # Inside, it cannot be seen whether anybody wants gradients.
    is_learning = torch.is_grad_enabled()
    summed: Any = _SummedHeadLoss.apply
    return cast(Tensor, summed(rows, weight, chosen, label_smoothing, is_learning))


class _SummedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, is_learning: bool
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wants_hidden, wants_weight = (is_learning and wanted for wanted in ctx.needs_input_grad[:2])
        inputs, head = hidden.to(dtype), weight.to(dtype)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        vocabulary = len(weight)
        count = ROWS.get(device, ROWS_GPU)
        total = torch.zeros((), device=hidden.device)
        for first in range(0, len(inputs), count):
            part, chosen = inputs[first : first + count], targets[first : first + count, None]
            logs = F.linear(part, head).float().log_softmax(1)
            of_chosen = logs.gather(1, chosen)
            total -= (1 - smoothing) * of_chosen.sum()
            if smoothing:
                total -= smoothing / vocabulary * logs.sum()
            if not (wants_hidden or wants_weight):
                continue
            # Softmax less what is wanted: the chosen token, and a little of all others.
            change = logs.exp_()
            change.scatter_add_(1, chosen, torch.full_like(of_chosen, smoothing - 1))
            if smoothing:
                change -= smoothing / vocabulary
            gradient = change.to(dtype)
            if of_hidden is not None:
                of_hidden[first : first + count] = gradient @ head
            if of_weight is not None:
                of_weight += gradient.T @ part
        ctx.of_hidden, ctx.of_weight = of_hidden, of_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        of_hidden = None if ctx.of_hidden is None else ctx.of_hidden.mul_(scale)
        of_weight = None if ctx.of_weight is None else ctx.of_weight.mul_(scale)
        return of_hidden, of_weight, None, None, None
