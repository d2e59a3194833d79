"""The loss of next-token prediction, and its gradients, without ever holding the scores of all tokens.

Scores over the vocabulary are the largest tensor of a training step by far. Here they are made for some
rows at a time; the gradients of the loss follow from them at once (softmax less target, as everywhere),
so that nothing of their size is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptcli.data.batches import IGNORED
from gptcli.native import product as native_product
from gptcli.native.loss import NativeLoss

# Rows whose scores are in memory at once: with more, the weight is laid out less often and fewer sums
# go over its gradient.
ROWS = {"cpu": 2048}
ROWS_GPU = 4096
# Scores of which a CPU without compiled code (native.loss) makes probabilities at once, in float32: few
# enough for its cache.
NUMBERS_AT_ONCE = 2**20
# Words of a slice of the vocabulary on a CPU: tensors no larger than those of the layers fit into the
# gaps that these have left.
WORDS_AT_ONCE = 2**13

LossAndChange = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def summed_head_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    *,
    is_compiled: bool = False,
    gradient: float = 1.0,
) -> Tensor:
    """Return the sum, in nats, of the cross-entropies of all targets that are not IGNORED.

    hidden: (sequences, tokens, width), of the last layer norm. weight: (vocabulary, width), of the head.
    targets: (sequences, tokens). Products are made in the type of autocast, all else in float32.
    A sum, not a mean: micro-batches with different numbers of targets add up to the batch's mean only
    when they are divided by the number of targets of the whole batch.
    gradient: the one that the backward pass is going to begin with; with another it takes longer.
    """
    asked = targets.flatten() != IGNORED
    rows, chosen = hidden.flatten(0, 1), targets.flatten()
    if not asked.all():
        rows, chosen = rows[asked], chosen[asked]
    # Inside, it cannot be seen whether anybody wants gradients.
    is_learning = torch.is_grad_enabled()
    function = _compiled() if is_compiled and is_learning else loss_and_change
    summed: Any = _SummedHeadLoss.apply
    return cast(Tensor, summed(rows, weight, chosen, label_smoothing, function, is_learning, gradient))


def replace_by_change(
    slices: list[Tensor], chosen: Tensor, smoothing: float, function: LossAndChange
) -> Tensor:
    """Return the summed loss, and put its gradient in the place of the scores.

    slices: (rows, some of the vocabulary) each, the scores. chosen: (rows, 1), the targets.
    """
    rows, vocabulary = len(chosen), sum(scores.shape[1] for scores in slices)
    count = max(1, NUMBERS_AT_ONCE // vocabulary) if chosen.device.type == "cpu" else rows
    total = torch.zeros((), device=chosen.device)
    for first in range(0, rows, count):
        parts = [scores[first : first + count] for scores in slices]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        loss, change = function(scores, chosen[first : first + count], smoothing)
        total += loss
        sizes = [part.shape[1] for part in parts]
        for part, of_part in zip(parts, torch.split(change, sizes, 1), strict=True):
            part.copy_(of_part)
    return total


def loss_and_change(scores: Tensor, chosen: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the summed loss and its gradient for the scores, (rows, vocabulary), in float32.

    chosen: (rows, 1), the targets.
    """
    vocabulary = scores.shape[1]
    logs = scores.float().log_softmax(1)
    of_chosen = logs.gather(1, chosen)
    loss = -(1 - smoothing) * of_chosen.sum()
    if smoothing:
        loss -= smoothing / vocabulary * logs.sum()
    # Softmax less what is wanted: the chosen token, and a little of all others.
    change = logs.exp_()
    change.scatter_add_(1, chosen, torch.full_like(of_chosen, smoothing - 1))
    if smoothing:
        change -= smoothing / vocabulary
    return loss, change


def _fusable_loss_and_change(scores: Tensor, chosen: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The same without a change in place, which a compiler would make a copy of all scores for."""
    vocabulary = scores.shape[1]
    logs = scores.float().log_softmax(1)
    wanted = torch.arange(vocabulary, device=scores.device) == chosen
    target = wanted * (1 - smoothing) + smoothing / vocabulary
    return -(logs * target).sum(), (logs.exp() - target).to(scores.dtype)


@lru_cache(maxsize=1)
def _compiled() -> LossAndChange:
    return cast(LossAndChange, torch.compile(_fusable_loss_and_change, dynamic=False))


class _Products(Protocol):
    """How the head's products are made."""

    def weights(self, head: Tensor) -> Tensor:
        """Return some of the head's weights, (words, width), as the others take them."""

    def scores(self, inputs: Tensor, head: Tensor) -> Tensor:
        """Return (rows, words) of (rows, width)."""

    def put(self, left: Tensor, right: Tensor, outputs: Tensor, *, adds: bool) -> None:
        """Put the product into `outputs`; adds: to what is there."""


class _TorchProducts:
    def __init__(self, dtype: torch.dtype, native: NativeLoss | None) -> None:
        self._dtype, self._native = dtype, native

    def weights(self, head: Tensor) -> Tensor:
        return head.to(self._dtype)

    def scores(self, inputs: Tensor, head: Tensor) -> Tensor:
        return F.linear(inputs, head)

    def put(self, left: Tensor, right: Tensor, outputs: Tensor, *, adds: bool) -> None:
        product = left @ right
        if not adds:
            outputs.copy_(product)
        elif self._native is not None:
            self._native.add(product, outputs)
        else:
            outputs.add_(product)


class _NativeProducts:
    def weights(self, head: Tensor) -> Tensor:
        return head  # They are rounded where they are laid out for a product.

    def scores(self, inputs: Tensor, head: Tensor) -> Tensor:
        scores = inputs.new_empty(len(inputs), native_product.row_stride(len(head)))[:, : len(head)]
        native_product.multiply(inputs, head.T, scores)
        return scores

    def put(self, left: Tensor, right: Tensor, outputs: Tensor, *, adds: bool) -> None:
        native_product.multiply(left, right, outputs, adds=adds)


def _products_for(
    hidden: Tensor, weight: Tensor, dtype: torch.dtype, native: NativeLoss | None
) -> _Products:
    is_for_these = {hidden.dtype, weight.dtype} <= {torch.bfloat16, torch.float32}
    if (
        is_for_these
        and weight.device.type == "cpu"
        and dtype == torch.bfloat16
        and native_product.is_faster(weight.numel())
    ):
        return _NativeProducts()
    return _TorchProducts(dtype, native)


class _SummedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        smoothing: float,
        function: LossAndChange,
        is_learning: bool,
        gradient: float,
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        wants_hidden, wants_weight = (is_learning and wanted for wanted in ctx.needs_input_grad[:2])
        inputs = hidden.to(dtype)
        words = WORDS_AT_ONCE if device == "cpu" else len(weight)
        native = NativeLoss.of(device, dtype)
        products = _products_for(hidden, weight, dtype, native)
        heads = [products.weights(part) for part in torch.split(weight, words)]
        # Written to by the first rows, if there are any, and added to by the next ones.
        new = torch.empty_like if len(inputs) else torch.zeros_like
        rows_together = torch.contiguous_format
        of_hidden = new(hidden, memory_format=rows_together) if wants_hidden else None
        of_weight = new(weight, memory_format=rows_together) if wants_weight else None
        of_heads = None if of_weight is None else torch.split(of_weight, words)
        count = ROWS.get(device, ROWS_GPU)
        total = torch.zeros((), device=hidden.device)
        for first in range(0, len(inputs), count):
            part, chosen = inputs[first : first + count], targets[first : first + count, None]
            slices = [products.scores(part, head) for head in heads]
            is_wanted = wants_hidden or wants_weight
            if native is not None:
                total += native.summed(
                    slices, chosen[:, 0], smoothing, is_learning=is_wanted, factor=gradient
                )
            elif is_wanted:
                total += replace_by_change(slices, chosen, smoothing, function)
            else:
                total += F.cross_entropy(
                    torch.cat(slices, 1).float(),
                    chosen[:, 0],
                    reduction="sum",
                    label_smoothing=smoothing,
                )
            if not is_wanted:
                continue
            for number, head in enumerate(heads):
                change = slices[number]
                if of_hidden is not None:
                    products.put(change, head, of_hidden[first : first + count], adds=number > 0)
                if of_heads is not None:
                    products.put(change.T, part, of_heads[number], adds=first > 0)
            del slices, change  # Before the next ones are made.
        ctx.of_hidden, ctx.of_weight = of_hidden, of_weight
        ctx.begun_with = 1.0 if native is None else gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.of_hidden, ctx.of_weight
        # Held by nobody else, they are added to and not copied; the loss may live on.
        ctx.of_hidden = ctx.of_weight = None
        if gradient.device.type != "cpu" or gradient != torch.tensor(ctx.begun_with):
            for one in gradients:
                if one is not None:
                    one.mul_(gradient / ctx.begun_with)
        return *gradients, None, None, None, None, None
