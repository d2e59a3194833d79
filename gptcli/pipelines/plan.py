"""A plan with its time measured: a few real steps, and what only the data says."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptcli.config.schema import Settings
from gptcli.data.batches import Batch
from gptcli.data.progress import Notify
from gptcli.errors import EnvironmentProblem
from gptcli.models.architecture import gpt2_config, new_model
from gptcli.models.layer import use_fast_layers
from gptcli.native import product as native_product
from gptcli.planning.findings import Limits
from gptcli.planning.machine import Machine, this_machine
from gptcli.planning.measurement import Measurement
from gptcli.planning.plan import Facts, Plan, facts_of, make_plan
from gptcli.planning.shape import Shape
from gptcli.planning.sizes import Choice, best_size, choose_size
from gptcli.planning.text_size import TextSize
from gptcli.tasks.assembly import TokenTask
from gptcli.tasks.table import build_job
from gptcli.training.device import Compute, choose_compute
from gptcli.training.job import Job
from gptcli.training.loop import accumulate_gradients, clipping
from gptcli.training.optimizers import Optimizers

# Steps are timed until there are so many and so much time has gone by.
MIN_STEPS, MAX_STEPS, SECONDS = 3, 30, 10.0
# The speed depends on the size, and the size on the speed: looked at so many times.
ROUNDS = 3


def measured_plan(settings: Settings, notify: Notify = lambda progress: None) -> Plan:
    """Return the plan of a training, from its data as it is and a few of its steps; no run is written.

    What is prepared of the data stays in the cache for the training. Raises as the training would.
    """
    compute = choose_compute(settings.runtime, for_training=True)
    job = build_job(settings, compute, notify)
    measurement = _time_steps(job.model, job.task, job.settings, compute, job.micro_batch_size)
    return make_plan(facts_of_job(job, compute), measurement)


def facts_of_job(job: Job, compute: Compute) -> Facts:
    """Return the facts of a job that is put together: counted, not estimated."""
    config: Any = job.model.config
    settings = job.settings
    length = settings.model.context_length
    assert length is not None
    head = sum(
        parameter.numel()
        for name, parameter in job.model.named_parameters()
        if name.startswith(("score.", "qa_outputs."))
    )
    shape = Shape(
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.n_positions,
        config.vocab_size,
        config.n_inner or 4 * config.n_embd,
        head,
    )
    here = this_machine(settings.runtime)
    kind: Any = compute.device.type
    precision: Any = compute.precision
    is_native = (kind, precision) == ("cpu", "bf16") and native_product.is_faster(
        native_product.LEAST_WEIGHTS
    )
    return Facts(
        settings,
        Machine(kind, precision, is_native, here.memory_bytes if kind != "cuda" else None),
        shape,
        length,
        job.micro_batch_size,
        TextSize(None, job.train.tokens, job.validation.tokens, is_counted=True),
        job.steps_per_epoch,
    )


def measured_choice(size: str | None, limits: Limits, text_bytes: int | None) -> tuple[Choice, Plan]:
    """Return a wished size, or the best for what there is, at the speed that its steps have here."""
    here = this_machine(Settings().runtime).memory_bytes
    limits = replace(limits, memory_bytes=limits.memory_bytes or here)
    flops_per_second = 0.0  # Begins with the smallest.
    for _ in range(ROUNDS):
        choice = choose_size(size) if size else best_size(limits, text_bytes, flops_per_second)
        facts = facts_of(choice.settings, text_bytes or choice.text_bytes)
        _check_memory(make_plan(facts))
        measurement = measure_shape(choice.settings, facts.shape, facts.length, facts.micro_batch_size)
        plan = make_plan(facts, measurement)
        assert plan.tokens_per_second is not None
        flops_per_second = plan.tokens_per_second * plan.flops_per_token
        if size or best_size(limits, text_bytes, flops_per_second) == choice:
            break
    return choice, plan


def _check_memory(plan: Plan) -> None:
    """Raise EnvironmentProblem for a model that this machine cannot hold: the system would end us."""
    there = plan.machine_memory_bytes
    if there is not None and plan.memory.peak > there:
        raise EnvironmentProblem(
            f"A model of {plan.parameters:,} parameters needs about {plan.memory.peak / 1e9:.1f} GB to "
            f"be trained, and there are {there / 1e9:.1f} GB: it cannot be measured here. Use --tflops."
        )


def measure_shape(settings: Settings, shape: Shape, length: int, micro_batch_size: int) -> Measurement:
    """Time steps of a new language model of this shape on random tokens, which take as long as text."""
    compute = choose_compute(settings.runtime, for_training=True)
    model = new_shape(shape, settings, compute)
    batches = _RandomBatches(shape.vocab_size, length, settings.training.batch_size)
    return _time_steps(model, TokenTask(batches, compute, 0.0), settings, compute, micro_batch_size)


def new_shape(shape: Shape, settings: Settings, compute: Compute) -> Any:
    """Return a new language model of this shape, as a training would hold it."""
    config = gpt2_config(
        settings.model.dropout,
        end_of_text_id=0,
        vocab_size=shape.vocab_size,
        n_positions=shape.positions,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_inner=shape.n_inner,
    )
    model = new_model(config, seed=0).to(compute.device)
    if compute.device.type == "cpu":
        use_fast_layers(model, compute.precision, is_compiled=settings.runtime.compile is True)
    return model


class _RandomBatches:
    """Sequences of random tokens."""

    def __init__(self, vocab_size: int, length: int, batch_size: int) -> None:
        self._vocab_size, self._shape = vocab_size, (batch_size, length + 1)

    def batch(self, step: int) -> Batch:
        ids = np.random.default_rng(step).integers(self._vocab_size, size=self._shape)
        sequences, length = len(ids), ids.shape[1] - 1
        return Batch(ids[:, :-1].copy(), np.full(sequences, length), ids[:, 1:].copy())

    def describe(self, step: int) -> str:
        return "random tokens"


def _time_steps(
    model: Any, task: Any, settings: Settings, compute: Compute, micro_batch_size: int
) -> Measurement:
    """Time a few updates, each after one micro-batch, or after two where a step has more."""
    optimizers = Optimizers(model, settings.training)
    passes: list[float] = []
    updates: list[float] = []
    tokens: list[float] = []
    model.train()
    started = time.perf_counter()
    step = 0
    while step <= MIN_STEPS or (step <= MAX_STEPS and time.perf_counter() - started < SECONDS):
        batch = next(task.batch(step).split(2 * micro_batch_size))
        parts = -(-len(batch.input_ids) // micro_batch_size)
        begun = _clock(compute)
        accumulate_gradients(model, task, batch, micro_batch_size, compute)
        learnt = _clock(compute)
        scale = clipping(optimizers.gradient_norm(), settings.training.max_grad_norm)
        optimizers.step(settings.training.learning_rate, scale)
        updated = _clock(compute)
        if step > 0:  # The first makes the optimizer's state, and warms up.
            passes.append((learnt - begun) / parts)
            updates.append(updated - learnt)
            tokens.append(batch.token_count / parts)
        step += 1
    peak = _peak_bytes(compute)
    model.eval()
    part = next(batch.split(micro_batch_size))
    evaluations: list[float] = []
    with torch.inference_mode(), compute.autocast():
        for _ in range(MIN_STEPS):
            begun = _clock(compute)
            task.summed_loss(model, part)
            evaluations.append((_clock(compute) - begun) / part.token_count)
    micro_batch_tokens = statistics.mean(tokens)
    return Measurement(
        # Means: the steps of a run, slow ones among them, add up.
        micro_batch_seconds=statistics.mean(passes),
        micro_batch_tokens=micro_batch_tokens,
        update_seconds=statistics.mean(updates),
        evaluation_seconds=statistics.mean(evaluations) * micro_batch_tokens,
        peak_bytes=peak,
    )


def _clock(compute: Compute) -> float:
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return time.perf_counter()


def _peak_bytes(compute: Compute) -> int | None:
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # Not on Linux.
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
