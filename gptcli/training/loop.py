"""The training loop: one for every task.

For each step, `train`

1. seeds torch from (seed, step), so that dropout too is a pure function of the step;
2. takes the step's batch, runs it through the model in micro-batches and adds up the gradients;
3. stops if the loss or the gradient is not finite, else clips the gradient and updates the weights;
4. yields what happened. Saving and reporting are the caller's; stopping is not asking for more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gptcli.config.schema import Settings
from gptcli.data.batches import Batch, mix
from gptcli.errors import Diverged
from gptcli.training.device import Compute
from gptcli.training.optimizers import Optimizers
from gptcli.training.schedule import learning_rate


class Task(Protocol):
    """What differs between tasks: the batches, and how a batch becomes a loss."""

    def batch(self, step: int) -> Batch:
        """Return the batch of optimizer step `step`, which counts from 0."""

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum, in nats, of the losses of the batch's targets."""


@dataclass
class Progress:
    """What a run has behind it; with the weights and the optimizer's state, all that resuming needs."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Targets trained on, over all epochs."""
    training_seconds: float = 0.0
    best: dict[str, float] | None = None
    """The evaluation with the lowest loss so far, and its step."""
    loss_scale: float = 1.0
    """fp16 only: the loss is multiplied by this, so that small gradients do not vanish."""
    steps_at_this_scale: int = 0


@dataclass(frozen=True)
class StepDone:
    """One optimizer step."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the batch's targets, in nats, before the update."""
    learning_rate: float
    grad_norm: float
    """Global L2 norm before clipping."""
    tokens: int
    """Targets of this batch."""
    seconds: float


# As in torch.amp.GradScaler.
FIRST_LOSS_SCALE = 65536.0
STEPS_UNTIL_SCALE_DOUBLES = 2000


def train(
    model: nn.Module,
    task: Task,
    optimizers: Optimizers,
    compute: Compute,
    settings: Settings,
    progress: Progress,
    micro_batch_size: int,
) -> Iterator[StepDone]:
    """Train from `progress.step` to `training.max_steps`, keeping `progress` up to date.

    Raises Diverged, before the update, if the loss or the gradient is not finite.
    """
    seed = settings.runtime.seed
    uses_loss_scale = compute.precision == "fp16"
    if uses_loss_scale and progress.step == 0:
        progress.loss_scale = FIRST_LOSS_SCALE
    while progress.step < settings.training.max_steps:
        started = time.perf_counter()
        step = progress.step
        model.train()
        torch.manual_seed(mix(seed, step))
        batch = task.batch(step)
        rate = learning_rate(step, settings.training)
        loss = accumulate_gradients(model, task, batch, micro_batch_size, compute, progress.loss_scale)
        grad_norm = _unscale_and_clip(model, progress.loss_scale, settings.training.max_grad_norm)
        if uses_loss_scale and not math.isfinite(grad_norm) and progress.loss_scale > 1:
            # fp16 overflowed, which says nothing of the run: the batch is tried at a smaller scale.
            progress.loss_scale /= 2
            progress.steps_at_this_scale = 0
            model.zero_grad(set_to_none=True)
            continue
        _stop_if_not_finite(step, loss, grad_norm)
        optimizers.step(rate)
        if uses_loss_scale:
            progress.steps_at_this_scale += 1
            if progress.steps_at_this_scale == STEPS_UNTIL_SCALE_DOUBLES:
                progress.loss_scale *= 2
                progress.steps_at_this_scale = 0
        seconds = time.perf_counter() - started
        progress.step += 1
        progress.tokens += batch.target_count
        progress.training_seconds += seconds
        yield StepDone(progress.step, loss, rate, grad_norm, batch.target_count, seconds)


def accumulate_gradients(
    model: nn.Module,
    task: Task,
    batch: Batch,
    micro_batch_size: int,
    compute: Compute,
    loss_scale: float = 1.0,
) -> float:
    """Add to the gradients those of the batch's mean loss, times `loss_scale`; return the mean loss.

    The mean is over the targets of the whole batch, so the result does not depend on micro_batch_size.
    """
    targets = batch.target_count
    total = torch.zeros((), device=compute.device)
    for micro_batch in batch.split(micro_batch_size):
        with compute.autocast():
            summed = task.summed_loss(model, micro_batch)
        torch.autograd.backward(summed * (loss_scale / targets))
        total += summed.detach()
    return total.item() / targets


def _unscale_and_clip(model: nn.Module, loss_scale: float, max_norm: float) -> float:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if loss_scale != 1:
        torch._foreach_div_(gradients, loss_scale)
    norm = nn.utils.get_total_norm(gradients)
    if max_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm.item()


def _stop_if_not_finite(step: int, loss: float, grad_norm: float) -> None:
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not math.isfinite(value):
            raise Diverged(
                f"The {name} of step {step + 1} is {value}; its update was not made. Start again with "
                "a lower training.learning_rate, or more training.warmup_steps."
            )
