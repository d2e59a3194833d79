"""The training loop: one for every task.

For each step, `train`

1. seeds torch from (seed, step), so that dropout too is a pure function of the step;
2. takes the step's batch, runs it through the model in micro-batches and adds up the gradients;
3. halves the micro-batches and tries again if memory runs out;
4. stops (or skips) if the loss or the gradient is not finite, else clips it and updates the weights;
5. yields what happened. Saving and reporting are the caller's; stopping is not asking for more.
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
from gptcli.errors import Diverged, EnvironmentProblem
from gptcli.training.device import Compute
from gptcli.training.optimizers import Optimizers
from gptcli.training.schedule import learning_rate


class Task(Protocol):
    """What differs between tasks: the batches, and how a batch becomes a loss."""

    def batch(self, step: int) -> Batch:
        """Return the batch of optimizer step `step`, which counts from 0."""

    def describe_batch(self, step: int) -> str:
        """Return where that batch lies in the data, for messages."""

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        """Return the sum of the losses of the batch's targets, each times its weight.

        gradient: the one that the backward pass is going to begin with, which may save time.
        """

    def target_weight(self, batch: Batch) -> float:
        """Return the sum of these weights: the number of targets, if all have the weight 1."""


@dataclass
class Progress:
    """What a run has behind it; with the weights and the optimizer's state, all that resuming needs."""

    micro_batch_size: int = 1
    """Sequences at once; halved when memory runs out."""
    step: int = 0
    """Optimizer steps done, those skipped included."""
    tokens: int = 0
    """Tokens of the sequences trained on, over all epochs; no padding."""
    training_seconds: float = 0.0
    """In optimizer steps alone."""
    elapsed_seconds: float = 0.0
    """In all sessions: steps, evaluations, saves."""
    steps_skipped: int = 0
    skipped_in_a_row: int = 0
    evaluated_step: int = -1
    """The last step that was evaluated; -1 for none."""
    last_evaluation_loss: float | None = None
    evaluations_since_best: int = 0
    best: dict[str, float] | None = None
    """The evaluation with the lowest loss so far, and its step."""
    loss_scale: float | None = None
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
    """Of this batch, padding not counted."""
    seconds: float


@dataclass(frozen=True)
class StepSkipped:
    """A step whose update was not made, because its loss or gradient is not finite."""

    step: int
    problem: str


@dataclass(frozen=True)
class MicroBatchHalved:
    """Memory ran out; the same batch is tried again in smaller parts."""

    micro_batch_size: int


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
) -> Iterator[StepDone | StepSkipped | MicroBatchHalved]:
    """Train from `progress.step` without end, keeping `progress` up to date.

    Raises Diverged, before the update, if the loss or the gradient is not finite and may not be skipped;
    EnvironmentProblem if not even one sequence fits in memory.
    """
    training = settings.training
    if compute.precision != "fp16":
        progress.loss_scale = None
    elif progress.loss_scale is None:
        progress.loss_scale = FIRST_LOSS_SCALE
    while True:
        started = time.perf_counter()
        step = progress.step
        model.train()
        torch.manual_seed(mix(settings.runtime.seed, step))
        batch = task.batch(step)
        loss_scale = progress.loss_scale or 1.0
        try:
            loss = accumulate_gradients(
                model, task, batch, progress.micro_batch_size, compute, loss_scale
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            model.zero_grad(set_to_none=True)
            halve_micro_batch(progress, error)
            yield MicroBatchHalved(progress.micro_batch_size)
            continue
        grad_norm = optimizers.gradient_norm() / loss_scale
        if progress.loss_scale and not math.isfinite(grad_norm) and progress.loss_scale > 1:
            # fp16 overflowed, which says nothing of the run: the batch is tried at a smaller scale.
            progress.loss_scale /= 2
            progress.steps_at_this_scale = 0
            model.zero_grad(set_to_none=True)
            continue
        problem = _not_finite(loss, grad_norm)
        if problem:
            where = f"The {problem} at step {step + 1} (batch: {task.describe_batch(step)})"
            progress.skipped_in_a_row += 1
            if progress.skipped_in_a_row > training.skip_bad_steps:
                raise Diverged(f"{where}; its update was not made.")
            model.zero_grad(set_to_none=True)
            progress.step += 1
            progress.steps_skipped += 1
            yield StepSkipped(progress.step, f"{where}; skipped.")
            continue
        rate = learning_rate(step, training)
        optimizers.step(rate, clipping(grad_norm, training.max_grad_norm) / loss_scale)
        if progress.loss_scale:
            progress.steps_at_this_scale += 1
            if progress.steps_at_this_scale == STEPS_UNTIL_SCALE_DOUBLES:
                progress.loss_scale *= 2
                progress.steps_at_this_scale = 0
        seconds = time.perf_counter() - started
        progress.step += 1
        progress.skipped_in_a_row = 0
        progress.tokens += batch.token_count
        progress.training_seconds += seconds
        yield StepDone(progress.step, loss, rate, grad_norm, batch.token_count, seconds)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's for memory that could not be had, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def halve_micro_batch(progress: Progress, error: RuntimeError) -> None:
    """Make micro-batches half as large because of `error`; EnvironmentProblem at a single sequence."""
    if progress.micro_batch_size == 1:
        raise EnvironmentProblem(
            "Out of memory with a single sequence at once. What helps: a smaller model.context_length, "
            "a smaller model or vocabulary, runtime.precision bf16, or a device with more memory."
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # Pieces of the old size are of no use to the new one.
    progress.micro_batch_size //= 2


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
    weight = task.target_weight(batch)
    gradient = loss_scale / weight
    total = torch.zeros((), device=compute.device)
    for micro_batch in batch.split(micro_batch_size):
        with compute.autocast():
            summed = task.summed_loss(model, micro_batch, gradient)
        torch.autograd.backward(summed * gradient)
        total += summed.detach()
    return total.item() / weight


def clipping(norm: float, max_norm: float) -> float:
    """Return what to multiply gradients of this norm with, so that it is at most max_norm; 0: any."""
    # As torch.nn.utils.clip_grad_norm_.
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0


def _not_finite(loss: float, grad_norm: float) -> str | None:
    if not math.isfinite(loss):
        return f"loss is {loss}"
    return None if math.isfinite(grad_norm) else f"gradient norm is {grad_norm}"
