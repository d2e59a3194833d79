"""A plan: what a training with these settings is, needs and takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptcli.config.schema import Settings
from gptcli.planning.machine import Machine, this_machine
from gptcli.planning.measurement import Measurement
from gptcli.planning.memory import (
    Memory,
    automatic_micro_batch_size,
    checkpoint_bytes,
    run_bytes,
    training_memory,
)
from gptcli.planning.shape import Shape, operations_per_token, trained_parameters
from gptcli.planning.starting import sequence_length, starting_shape
from gptcli.planning.steps import planned_steps
from gptcli.planning.text_size import TextSize, text_size

NEW = "a new GPT-2"


@dataclass(frozen=True)
class Facts:
    """What a plan is computed from."""

    settings: Settings
    machine: Machine
    shape: Shape
    length: int
    """Most tokens of a sequence."""
    micro_batch_size: int
    text: TextSize
    steps_per_epoch: float | None
    """None where only the data says it: it is not known, or its rows are not counted."""


@dataclass(frozen=True)
class Plan:
    """What a training is, needs and takes. None stands for what is not known."""

    task: str
    start: str
    """"a new GPT-2", or the model's name."""
    device: str
    precision: str
    n_layer: int
    n_head: int
    n_embd: int
    context_length: int
    vocab_size: int
    parameters: int
    parameter_parts: dict[str, int]
    trained_parameters: int
    text: TextSize
    batch_size: int
    micro_batch_size: int
    steps: int | None
    tokens: int | None
    """Over all epochs, no padding."""
    epochs: float | None
    max_minutes: float | None
    """The setting, which can end the training before its last step."""
    flops_per_token: int
    """Forward and backward."""
    flops: int | None
    memory: Memory
    machine_memory_bytes: int | None
    measured_peak_bytes: int | None
    checkpoint_bytes: int
    run_bytes: int
    """The most that the run takes on disk."""
    tokens_per_second: float | None
    seconds: float | None
    """Of all steps and evaluations."""
    evaluation_seconds: float | None
    """Of these, those of evaluations."""

    @property
    def is_new(self) -> bool:
        return self.start == NEW


def facts_of(settings: Settings, given_bytes: int | None = None) -> Facts:
    """Return the facts as settings, small files and file sizes tell them.

    given_bytes: takes the place of the text's size. Raises DataError, ModelError or ConfigError for what
    is named and not here.
    """
    shape = starting_shape(settings)
    length = sequence_length(settings, shape)
    machine = this_machine(settings.runtime)
    training = settings.training
    micro_batch_size = training.micro_batch_size
    if micro_batch_size == "auto":
        micro_batch_size = automatic_micro_batch_size(shape, training.batch_size, length, machine.device)
    text = text_size(settings, shape.vocab_size, given_bytes)
    steps_per_epoch = None
    if settings.task == "language-modelling" and text.train_tokens is not None:
        steps_per_epoch = max(1, math.ceil(text.train_tokens / length)) / training.batch_size
    return Facts(settings, machine, shape, length, micro_batch_size, text, steps_per_epoch)


def make_plan(
    facts: Facts, measurement: Measurement | None = None, flops_per_second: float | None = None
) -> Plan:
    """Return the plan. Its time comes from a measurement, or from a speed that is given."""
    settings, shape, length = facts.settings, facts.shape, facts.length
    training = settings.training
    operations = operations_per_token(shape, settings, length)
    steps = _steps(facts)
    tokens = _tokens(facts, steps)
    flops = None if tokens is None else tokens * operations.training
    tokens_per_second = seconds = evaluation_seconds = None
    evaluated = 0 if steps is None else _evaluated_tokens(facts, steps)
    if measurement is not None:
        micro_batches = -(-training.batch_size // facts.micro_batch_size)
        step_seconds = measurement.step_seconds(micro_batches)
        tokens_per_second = micro_batches * measurement.micro_batch_tokens / step_seconds
        if tokens is not None and steps is not None:
            per_token = measurement.evaluation_seconds / measurement.micro_batch_tokens
            evaluation_seconds = evaluated * per_token
            seconds = tokens / tokens_per_second + evaluation_seconds
    elif flops_per_second is not None:
        tokens_per_second = flops_per_second / operations.training
        if tokens is not None:
            evaluation_seconds = evaluated * operations.forward / flops_per_second
            seconds = tokens * operations.training / flops_per_second + evaluation_seconds
    machine = facts.machine
    train_tokens = facts.text.train_tokens
    return Plan(
        task=settings.task,
        start=settings.model.name or NEW,
        device=machine.device,
        precision=machine.precision,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        context_length=length,
        vocab_size=shape.vocab_size,
        parameters=shape.parameters,
        parameter_parts=shape.parameter_parts(),
        trained_parameters=trained_parameters(shape, training),
        text=facts.text,
        batch_size=training.batch_size,
        micro_batch_size=facts.micro_batch_size,
        steps=steps,
        tokens=tokens,
        epochs=tokens / train_tokens if tokens is not None and train_tokens else None,
        max_minutes=training.max_minutes,
        flops_per_token=operations.training,
        flops=flops,
        memory=training_memory(
            shape,
            settings,
            length,
            facts.micro_batch_size,
            machine.device,
            machine.precision,
            machine.is_native,
        ),
        machine_memory_bytes=machine.memory_bytes,
        measured_peak_bytes=None if measurement is None else measurement.peak_bytes,
        checkpoint_bytes=checkpoint_bytes(shape, settings),
        run_bytes=run_bytes(shape, settings),
        tokens_per_second=tokens_per_second,
        seconds=seconds,
        evaluation_seconds=evaluation_seconds,
    )


def _steps(facts: Facts) -> int | None:
    """Return the optimizer steps until the training ends, by max_tokens at the latest."""
    training = facts.settings.training
    tokens_per_step = training.batch_size * facts.length
    steps = planned_steps(training, facts.shape.parameters, tokens_per_step, facts.steps_per_epoch)
    if training.max_tokens is not None and steps is not None:
        steps = min(steps, -(-training.max_tokens // tokens_per_step))
    return steps


def _tokens(facts: Facts, steps: int | None) -> int | None:
    training, text_tokens = facts.settings.training, facts.text.train_tokens
    if facts.settings.task == "language-modelling" and steps is not None:
        return steps * training.batch_size * facts.length
    if text_tokens is None:
        return None
    # Sequences are of any length: what counts is how often the text is read.
    if training.epochs is not None:
        return round(training.epochs * text_tokens)
    if facts.steps_per_epoch is None or steps is None:
        return None
    return round(steps / facts.steps_per_epoch * text_tokens)


def _evaluated_tokens(facts: Facts, steps: int) -> int:
    """Return the tokens that all evaluations score: every eval_steps, and at the end."""
    settings = facts.settings
    held_out = facts.text.held_out_tokens or 0
    if settings.task == "language-modelling" and settings.evaluation.max_tokens is not None:
        held_out = min(held_out, settings.evaluation.max_tokens)
    evaluations = -(-steps // settings.evaluation.eval_steps)
    if settings.task == "language-modelling" and settings.model.name is not None:
        evaluations += 1  # Before the first step.
    return evaluations * held_out
