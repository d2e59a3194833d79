"""`gptcli plan`: what a training needs, or which size suits what there is."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli import console
from gptcli.commands.options import Assignments
from gptcli.errors import ConfigError

if TYPE_CHECKING:
    from gptcli.config.schema import Settings
    from gptcli.planning.findings import Limits
    from gptcli.planning.plan import Plan
    from gptcli.planning.sizes import Choice

WIDTH = 80
NUMBER = 15  # Columns for a number, so that those of one table stand below each other.


def plan(
    config: Path | None = typer.Option(None, "--config", "-c", help="Plan the training of this file."),
    assignments: Assignments = [],
    model: str | None = typer.Option(None, "--model", "-m", help="With --config: start from this."),
    size: str | None = typer.Option(
        None, "--size", help="Plan a GPT-2 of this size: 124M, 1.5B, or small, medium, ..."
    ),
    hours: float | None = typer.Option(None, "--hours", help="The time that you have."),
    memory: float | None = typer.Option(None, "--memory", help="The memory that you have, in GB."),
    data: str | None = typer.Option(None, "--data", help="The text that you have: file or folder."),
    data_megabytes: float | None = typer.Option(None, "--data-megabytes", help="The same, in MB."),
    measure: bool = typer.Option(False, "--measure", help="Time a few real steps on this machine."),
    tflops: float | None = typer.Option(
        None, "--tflops", help="In place of that: the 10^12 operations a second that training reaches."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the plan as one JSON object."),
) -> None:
    """Say what a training needs: parameters, compute, data, memory, disk, time.

    With --config, of that training; with --size, of one with as much data as makes the best of its
    compute; without both, of the best size for your --hours, --memory and --data. Nothing is trained.
    MB are 10^6 bytes, GB 10^9.

    Examples:
      gptcli plan --config configs/pretrain/demo.yaml
      gptcli plan --hours 8 --memory 16 --data my-text/ --tflops 0.2
    """
    from gptcli.planning.findings import find
    from gptcli.planning.sizes import explain

    _exclude({"--config": config, "--size": size})
    _exclude({"--measure": measure or None, "--tflops": tflops})
    _exclude({"--data": data, "--data-megabytes": data_megabytes})
    limits = _limits(hours, memory)
    text_bytes = _from_option("--data-megabytes", data_megabytes, 1e6)
    flops_per_second = _from_option("--tflops", tflops, 1e12)
    choice: Choice | None = None
    if config is not None:
        from gptcli.config.loading import load_settings

        given = {"model": {"name": model}, "data": {"source": data}}
        settings = load_settings(config, assignments, given)
        made = _plan_of_config(settings, text_bytes, measure, flops_per_second)
    else:
        if assignments or model is not None:
            raise ConfigError("--set and --model change a config: they need --config.")
        if (size, hours, memory, data, data_megabytes) == (None,) * 5:
            raise ConfigError(
                "What is to be planned? Give --config FILE, or --size N, or what you have: --hours, "
                "--memory, --data or --data-megabytes."
            )
        if data is not None:
            text_bytes = _bytes_of(data)
        choice, made = _plan_of_size(size, limits, text_bytes, measure, flops_per_second)
    sentences = list(find(made, limits))
    if choice is not None:
        sentences = [*explain(choice, is_text_given=text_bytes is not None), *sentences]
    if as_json:
        chosen = {} if choice is None else {"settings": choice.settings_to_write()}
        console.write_json({**asdict(made), **chosen, "findings": sentences})
        return
    for line in _lines(made, choice, sentences):
        console.write_result(line)


def _exclude(options: dict[str, Any]) -> None:
    if all(value is not None for value in options.values()):
        raise ConfigError(f"{' and '.join(options)} exclude each other.")


def _from_option(name: str, value: float | None, unit: float) -> int | None:
    if value is None:
        return None
    if not 0 < value < 1e12:
        raise ConfigError(f"{name} is {value:g}; it must be more than 0.")
    return max(1, round(value * unit))


def _limits(hours: float | None, memory: float | None) -> Limits:
    from gptcli.planning.findings import Limits

    return Limits(
        seconds=_from_option("--hours", hours, 3600),
        memory_bytes=_from_option("--memory", memory, 1e9),
        disk_bytes=shutil.disk_usage(Path.cwd()).free,
    )


def _bytes_of(data: str) -> int:
    from gptcli.planning.text_size import bytes_of_source

    size = bytes_of_source(data)
    if size is None:
        raise ConfigError(f"--data is {data}, which is not here; say its size by --data-megabytes.")
    return size


def _plan_of_config(
    settings: Settings, text_bytes: int | None, measure: bool, flops_per_second: float | None
) -> Plan:
    if not measure:
        from gptcli.planning.plan import facts_of, make_plan

        return make_plan(facts_of(settings, text_bytes), flops_per_second=flops_per_second)
    if text_bytes is not None:
        raise ConfigError("--measure reads the text itself: leave --data-megabytes out.")
    with console.ProgressDisplay() as display:
        from gptcli.commands.training import show_preparation
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.plan import measured_plan

        quiet_libraries()
        return measured_plan(settings, lambda progress: show_preparation(display, progress))


def _plan_of_size(
    size: str | None,
    limits: Limits,
    text_bytes: int | None,
    measure: bool,
    flops_per_second: float | None,
) -> tuple[Choice, Plan]:
    if measure:
        with console.working("Measuring"):
            from gptcli.pipelines.plan import measured_choice

            return measured_choice(size, limits, text_bytes)
    from gptcli.planning.plan import facts_of, make_plan
    from gptcli.planning.sizes import best_size, choose_size

    if size is None and limits.seconds is not None and flops_per_second is None:
        raise ConfigError(
            "--hours needs the speed of the machine: --measure times a few steps here, --tflops says it."
        )
    choice = choose_size(size) if size else best_size(limits, text_bytes, flops_per_second)
    facts = facts_of(choice.settings, text_bytes or choice.text_bytes)
    return choice, make_plan(facts, flops_per_second=flops_per_second)


def _lines(plan: Plan, choice: Choice | None, sentences: list[str]) -> list[str]:
    """Return what people see."""
    lines = [
        f"{'A new GPT-2' if plan.is_new else plan.start}: {plan.n_layer} layers, {plan.n_head} heads, "
        f"{plan.n_embd:,} wide, {plan.context_length:,} tokens of context",
        *console.fact_lines("\nParameters", _parameters(plan)),
        *console.fact_lines(f"\nTraining, on {plan.device} in {plan.precision}", _training(plan)),
        *console.fact_lines("\nMemory", _memory(plan)),
    ]
    if choice is not None:
        lines += console.fact_lines("\nIn a config", _to_write(choice))
    lines += [""] if sentences else []
    # A setting stays on the line of its --set.
    together = [sentence.replace("--set ", "--set\N{NO-BREAK SPACE}") for sentence in sentences]
    bullets = textwrap.TextWrapper(
        WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    for sentence in together:
        lines += [line.replace("\N{NO-BREAK SPACE}", " ") for line in bullets.wrap(sentence)]
    return lines


def _parameters(plan: Plan) -> list[tuple[str, str]]:
    rows = [
        (name, f"{count:>{NUMBER},}  {count / plan.parameters:4.0%}")
        for name, count in plan.parameter_parts.items()
    ]
    rows.append(("in all", f"{plan.parameters:>{NUMBER},}"))
    if plan.trained_parameters != plan.parameters:
        rows.append(("trained", f"{plan.trained_parameters:>{NUMBER},}"))
    return rows


def _training(plan: Plan) -> list[tuple[str, str]]:
    from gptcli.planning.findings import in_bytes, in_count, in_ratio, in_time

    text = plan.text
    known = "not known"
    if text.train_tokens is not None:
        known = f"{text.train_tokens:,} tokens, counted"
        if not text.is_counted:
            known = f"about {in_count(text.train_tokens)} tokens, estimated"
            known += "" if text.bytes is None else f" from {in_bytes(text.bytes)}"
    rows = [("training text", known)]
    if plan.steps is not None:
        at_once = f"batches of {plan.batch_size:,} sequences, {plan.micro_batch_size:,} at once"
        rows.append(("steps", f"{plan.steps:,} on {at_once}"))
    if plan.tokens is not None:
        times = "" if plan.epochs is None else f", {in_ratio(plan.epochs)} times the text"
        tokens = in_count(plan.tokens) if plan.tokens >= 1e6 else f"{plan.tokens:,}"
        rows.append(("tokens", f"{tokens}{times}"))
        if plan.is_new:
            rows.append(("tokens a parameter", in_ratio(plan.tokens / plan.parameters)))
    operations = f"{in_count(plan.flops_per_token)} operations a token"
    rows.append(("compute", operations + ("" if plan.flops is None else f", {plan.flops:.2g} in all")))
    if plan.tokens_per_second is None:
        rows.append(("time", "not known; --measure times a few steps"))
    else:
        speed = f"{plan.tokens_per_second:,.0f} tokens a second"
        rows.append(("time", f"{in_time(plan.seconds)} at {speed}" if plan.seconds else speed))
    disk = f"{in_bytes(plan.checkpoint_bytes)} a checkpoint, up to {in_bytes(plan.run_bytes)} a run"
    return [*rows, ("disk", disk)]


def _memory(plan: Plan) -> list[tuple[str, str]]:
    from gptcli.planning.findings import in_bytes

    memory = plan.memory
    parts = {
        "Python and libraries": memory.libraries,
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        f"weights in {plan.precision}": memory.copies,
        "activations": memory.activations,
        "logits": memory.logits,
        "freed, in pieces": memory.in_pieces,
    }
    rows = [(name, f"{in_bytes(size):>{NUMBER}}") for name, size in parts.items() if size]
    there = (
        "" if plan.machine_memory_bytes is None else f" of {in_bytes(plan.machine_memory_bytes)} here"
    )
    rows.append(("at most at once", f"{in_bytes(memory.peak):>{NUMBER}}{there}"))
    if plan.measured_peak_bytes is not None:
        rows.append(("measured", f"{in_bytes(plan.measured_peak_bytes):>{NUMBER}}"))
    return rows


def _to_write(choice: Choice) -> list[tuple[str, str]]:
    def inline(value: Any) -> str:
        if not isinstance(value, dict):
            return str(value)
        return "{" + ", ".join(f"{key}: {inline(item)}" for key, item in value.items()) + "}"

    return [(f"{section}:", inline(value)) for section, value in choice.settings_to_write().items()]
