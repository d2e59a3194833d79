"""What a plan means for the person who made it: sentences, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gptcli.config.schema import (
    NAMED_SIZES,
    OPTIMAL_TOKENS_PER_PARAMETER,
    USEFUL_EPOCHS,
    SizeName,
)
from gptcli.planning.plan import Plan
from gptcli.planning.shape import Shape
from gptcli.planning.text_size import bytes_per_token

# The least of Hoffmann et al. 2022, whose rule OPTIMAL_TOKENS_PER_PARAMETER is.
SMALLEST_OF_ITS_STUDY = 70_000_000
# Times that a text can be read until little is gained by it: of Muennighoff et al., as USEFUL_EPOCHS.
LAST_EPOCHS = 16
# A share of the time from which evaluations are worth a word.
MUCH = 0.2


@dataclass(frozen=True)
class Limits:
    """What there is; None for what sets no limit."""

    seconds: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None


def find(plan: Plan, limits: Limits) -> Iterator[str]:
    """Yield what matters of a plan, the gravest first."""
    yield from _of_limits(plan, limits)
    if plan.text.train_tokens is None:
        yield (
            "How large the text is cannot be seen here, as with a data set on the hub: say it with "
            "--data-megabytes, or let --measure read it."
        )
    if plan.task == "language-modelling" and plan.is_new and plan.tokens:
        yield from _of_data(plan, plan.tokens)
        share = plan.parameter_parts["token embedding"] / plan.parameters
        if share > 0.5:
            yield (
                f"The vocabulary has {share:.0%} of the parameters: a smaller "
                "tokenizer.train.vocab_size leaves more of them, and of the time, for the layers."
            )


def _of_limits(plan: Plan, limits: Limits) -> Iterator[str]:
    memory = limits.memory_bytes or plan.machine_memory_bytes
    if memory is not None and plan.memory.peak > memory:
        yield (
            f"It needs about {in_bytes(plan.memory.peak)} of memory, and there is {in_bytes(memory)}. "
            "What helps: a smaller training.micro_batch_size or model.context_length, "
            "training.gradient_checkpointing, a smaller model."
        )
    if limits.disk_bytes is not None and plan.run_bytes > limits.disk_bytes:
        yield (
            f"The run needs up to {in_bytes(plan.run_bytes)} on disk, and there is "
            f"{in_bytes(limits.disk_bytes)}: make room, or put --output-dir on another disk."
        )
    if plan.seconds is None:
        return
    if plan.evaluation_seconds is not None and plan.evaluation_seconds > MUCH * plan.seconds:
        yield (
            f"Evaluations take {plan.evaluation_seconds / plan.seconds:.0%} of the time: a larger "
            "evaluation.eval_steps, or evaluation.max_tokens, makes them less."
        )
    if limits.seconds is not None and plan.seconds > limits.seconds:
        yield (
            f"It takes about {in_time(plan.seconds)}, and you have {in_time(limits.seconds)}: "
            f"{limits.seconds / plan.seconds:.0%} of its steps. `gptcli plan --hours` without --config "
            "says which size suits that time."
        )
    if plan.max_minutes is not None and plan.seconds > plan.max_minutes * 60:
        share = plan.max_minutes * 60 / plan.seconds
        yield f"training.max_minutes ends it after about {share:.0%} of its steps."


def _of_data(plan: Plan, tokens: int) -> Iterator[str]:
    """Yield how text, model and steps fit each other."""
    optimal = OPTIMAL_TOKENS_PER_PARAMETER * plan.parameters
    ratio = tokens / plan.parameters
    text = plan.text.train_tokens
    begin = (
        f"The training has {in_ratio(ratio)} tokens a parameter; compute-optimal is about "
        f"{OPTIMAL_TOKENS_PER_PARAMETER} (Hoffmann et al. 2022)"
    )
    per_step = plan.batch_size * plan.context_length
    if text is not None and optimal > USEFUL_EPOCHS * text:
        yield f"{begin}. {_smaller(plan, text)}"
    elif ratio < OPTIMAL_TOKENS_PER_PARAMETER / 2:
        reads = f", which reads your text {in_ratio(optimal / text)} times" if text else ""
        longer = f"train longer on it (--set training.max_steps={-(-optimal // per_step)}{reads})"
        yield f"{begin}: {longer}, or use a smaller model."
    elif ratio > 2 * OPTIMAL_TOKENS_PER_PARAMETER:
        yield f"{begin}: a larger model would learn more with the same compute, if it may be larger."
    else:
        yield f"{begin}."
    # The last step may begin the next pass.
    if plan.epochs is not None and round(plan.epochs, 1) > USEFUL_EPOCHS:
        yield (
            f"Your text is read {in_ratio(plan.epochs)} times: up to about {USEFUL_EPOCHS} times is "
            f"nearly as good as new text, beyond {LAST_EPOCHS} little is gained (Muennighoff et al. "
            f"2023). --set training.max_steps={max(1, USEFUL_EPOCHS * (text or 0) // per_step)} is "
            f"{USEFUL_EPOCHS} times; else training.patience ends what no longer helps."
        )
    if plan.parameters < SMALLEST_OF_ITS_STUDY:
        yield (
            "These rules were found on models of 70 million parameters and more. For smaller ones they "
            "are rough: let the held-out loss decide."
        )


def _smaller(plan: Plan, text: int) -> str:
    """Return what to do about a text that is too little for the model."""
    fitting = USEFUL_EPOCHS * text // OPTIMAL_TOKENS_PER_PARAMETER
    tokens = OPTIMAL_TOKENS_PER_PARAMETER * plan.parameters / USEFUL_EPOCHS
    needed = in_bytes(round(tokens * bytes_per_token(plan.vocab_size)))
    size = _largest_size(fitting, plan)
    smaller = f"a smaller model such as --set model={size}" if size else "a smaller model or vocabulary"
    return (
        f"Your text, read {USEFUL_EPOCHS} times, is enough for about {in_count(fitting)} parameters: "
        f"use {smaller}, or more text (about {needed})."
    )


def _largest_size(parameters: int, plan: Plan) -> SizeName | None:
    """Return the largest named size up to so many parameters, and smaller than that of the plan."""
    sizes: dict[SizeName, int] = {
        name: Shape.of(*shape, plan.vocab_size).parameters  # type: ignore[misc]
        for name, shape in NAMED_SIZES.items()
    }
    fitting = [name for name, size in sizes.items() if size <= min(parameters, plan.parameters - 1)]
    return fitting[-1] if fitting else None


def in_bytes(size: int) -> str:
    """Return bytes for people: MB up to 1,000 of them, then GB (powers of ten)."""
    if size < 950_000:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e6:,.0f} MB" if size < 999.5e6 else f"{size / 1e9:,.1f} GB"


def in_count(number: float) -> str:
    """Return a large number for people: 1,234, 1.2 million, 2.5 billion."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {name}"
    return f"{float(f'{number:.3g}'):,.0f}"


def in_ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def in_time(seconds: float) -> str:
    """Return a long time for people."""
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} seconds"
