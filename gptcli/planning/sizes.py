"""Which size of GPT-2: that of a wished number of parameters, or the best for what there is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptcli.config.schema import NAMED_SIZES, OPTIMAL_TOKENS_PER_PARAMETER, USEFUL_EPOCHS, Settings
from gptcli.errors import ConfigError
from gptcli.planning.findings import Limits, in_bytes
from gptcli.planning.machine import this_machine
from gptcli.planning.memory import automatic_micro_batch_size, training_memory
from gptcli.planning.shape import Shape, operations_per_token
from gptcli.planning.starting import GPT2_VOCABULARY
from gptcli.planning.text_size import bytes_per_token

# Layers, heads, width, context, vocabulary: from gptcli's smallest to the largest GPT-2, each up to four
# times the one before. The published shapes are among them, and heads are 64 wide as theirs. A large
# vocabulary would be most of a small model.
FAMILY = (
    (2, 2, 64, 128, 1_024),
    (2, 2, 128, 128, 2_048),
    (4, 3, 192, 256, 4_096),
    (4, 4, 256, 256, 4_096),
    (6, 6, 384, 256, 8_192),
    (8, 8, 512, 512, 8_192),
    (10, 10, 640, 512, 16_384),
    (12, 12, 768, 1024, GPT2_VOCABULARY),
    (16, 14, 896, 1024, GPT2_VOCABULARY),
    (24, 16, 1024, 1024, GPT2_VOCABULARY),
    (30, 18, 1152, 1024, GPT2_VOCABULARY),
    (36, 20, 1280, 1024, GPT2_VOCABULARY),
    (42, 23, 1472, 1024, GPT2_VOCABULARY),
    (48, 25, 1600, 1024, GPT2_VOCABULARY),
)
EVALUATED_TOKENS, EVAL_STEPS = 200_000, 1_000
_UNITS = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


@dataclass(frozen=True)
class Choice:
    """A size, and what it is chosen for."""

    settings: Settings
    """Of a training with as many tokens as are compute-optimal, where the limits leave so many."""
    tokens: int
    text_bytes: int
    """The text that has so many tokens beside what is held out."""
    decided_by: str | None
    """What a larger model would need more of: text, time or memory; None if nothing decided."""

    def settings_to_write(self) -> dict[str, Any]:
        """Return what a config must say for this training; the rest are defaults."""
        settings = self.settings
        shape = {"n_layer", "n_head", "n_embd", "context_length"}
        steps = {"max_steps", "batch_size", "micro_batch_size"}
        return {
            "model": settings.model.model_dump(include=shape),
            "tokenizer": settings.tokenizer.model_dump(include={"train": {"vocab_size"}}),
            "training": settings.training.model_dump(include=steps),
            "evaluation": settings.evaluation.model_dump(include={"eval_steps", "max_tokens"}),
        }


def family() -> list[Shape]:
    """Return the shapes that a size is chosen from, the smallest first."""
    return [Shape.of(*shape) for shape in FAMILY]


def shape_of_size(size: str) -> Shape:
    """Return the shape of a named size, or that with nearly so many parameters: 124M, 1.5B, 30_000_000.

    Raises ConfigError for what is no size.
    """
    named = [Shape.of(*shape) for shape in FAMILY if shape[:4] == NAMED_SIZES.get(size)]
    if named:
        return named[0]
    text = size.strip().lower().replace("_", "").replace(",", "")
    unit = _UNITS.get(text[-1:], 1)
    try:
        wished = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        wished = 0.0
    if not 1 <= wished < 1e15:
        names = ", ".join(NAMED_SIZES)
        raise ConfigError(f"--size is {size}; it must be a number such as 124M or 1.5B, or {names}.")
    return min(family(), key=lambda shape: abs(math.log(shape.parameters / wished)))


def choose_size(size: str) -> Choice:
    """Return a training of a wished size with compute-optimal tokens."""
    shape = shape_of_size(size)
    return _choice(shape, OPTIMAL_TOKENS_PER_PARAMETER * shape.parameters, None, None)


def explain(choice: Choice, *, is_text_given: bool) -> Iterator[str]:
    """Yield what a choice rests on."""
    if choice.decided_by is not None:
        yield f"A larger model would need more {choice.decided_by}."
    if not is_text_given:
        again = in_bytes(choice.text_bytes // USEFUL_EPOCHS)
        yield (
            f"It wants about {in_bytes(choice.text_bytes)} of English text (an estimate), or {again} "
            f"that is read {USEFUL_EPOCHS} times."
        )


def best_size(limits: Limits, text_bytes: int | None, flops_per_second: float | None) -> Choice:
    """Return the largest size that can have compute-optimal tokens within the limits.

    The text may be read four times. If no size can, the smallest, with the tokens that there are.
    """
    missing: list[str] = []
    for shape in reversed(family()):
        optimal = OPTIMAL_TOKENS_PER_PARAMETER * shape.parameters
        most = _most_tokens(shape, limits, text_bytes, flops_per_second)
        lacking = [what for what, tokens in most.items() if tokens < optimal]
        if limits.memory_bytes is not None and _memory(shape, 1) > limits.memory_bytes:
            lacking.append("memory")
        if not lacking:
            break
        missing = lacking
    tokens = min([optimal, *most.values()])
    return _choice(shape, tokens, " and ".join(missing) or None, limits.memory_bytes)


def _most_tokens(
    shape: Shape, limits: Limits, text_bytes: int | None, flops_per_second: float | None
) -> dict[str, int]:
    """Return the tokens that text and time allow, of those that set a limit."""
    most = {}
    if text_bytes is not None:
        train_bytes = text_bytes * (1 - Settings().data.validation_fraction)
        most["text"] = int(USEFUL_EPOCHS * train_bytes / bytes_per_token(shape.vocab_size))
    if limits.seconds is not None and flops_per_second is not None:
        operations = operations_per_token(shape, Settings(), shape.positions).training
        most["time"] = int(limits.seconds * flops_per_second / operations)
    return most


def _memory(shape: Shape, micro_batch_size: int) -> int:
    machine = this_machine(Settings().runtime)
    return training_memory(
        shape,
        Settings(),
        shape.positions,
        micro_batch_size,
        machine.device,
        machine.precision,
        machine.is_native,
    ).peak


def _choice(shape: Shape, tokens: int, decided_by: str | None, memory_bytes: int | None) -> Choice:
    model = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd}
    settings = Settings.model_validate(
        {
            "model": {**model, "context_length": shape.positions},
            "tokenizer": {"train": {"vocab_size": shape.vocab_size}},
            # Scored whole, the held-out part of a large text would take most of the time.
            "evaluation": {"max_tokens": EVALUATED_TOKENS, "eval_steps": EVAL_STEPS},
        }
    )
    training = settings.training
    most = automatic_micro_batch_size(shape, training.batch_size, shape.positions, "cpu")
    micro_batch_size = 1
    while micro_batch_size * 2 <= most and (
        memory_bytes is None or _memory(shape, micro_batch_size * 2) <= memory_bytes
    ):
        micro_batch_size *= 2
    steps = max(1, tokens // (training.batch_size * shape.positions))
    training = training.model_copy(
        update={
            "max_steps": steps,
            "tokens_per_parameter": None,
            "micro_batch_size": micro_batch_size,
        }
    )
    return Choice(
        settings.model_copy(update={"training": training}),
        tokens,
        round(tokens * bytes_per_token(shape.vocab_size) / (1 - settings.data.validation_fraction)),
        decided_by,
    )
