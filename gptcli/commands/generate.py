"""`gptcli generate`: continue prompts with a model."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptcli import console
from gptcli.commands.options import Assignments, Device, Precision
from gptcli.errors import ConfigError

if TYPE_CHECKING:
    from gptcli.pipelines.generate import Generator, PromptRun


def generate(
    prompt: str | None = typer.Argument(
        None, help="Text to continue; empty starts from end-of-text; - reads standard input."
    ),
    model: str = typer.Option(..., "--model", "-m", help="Model folder, run folder or hub name."),
    input_file: str | None = typer.Option(
        None, "--input", "-i", metavar="FILE|-", help="Prompts: .txt (one a line), .jsonl, or - (stdin)."
    ),
    output_file: Path | None = typer.Option(
        None, "--output", metavar="FILE", help="Write JSON lines to this file instead of stdout."
    ),
    max_new_tokens: int | None = typer.Option(
        None, "--max-new-tokens", help="Most tokens after the prompt [default: 100]."
    ),
    max_length: int | None = typer.Option(
        None, "--max-length", help="Most tokens, the prompt included."
    ),
    temperature: float | None = typer.Option(
        None, "--temperature", "-t", help="Sample; below 1 is less random."
    ),
    top_k: int | None = typer.Option(None, "--top-k", help="Sample from the k likeliest tokens."),
    top_p: float | None = typer.Option(
        None, "--top-p", help="Sample from the fewest tokens whose probability reaches p."
    ),
    num_return_sequences: int | None = typer.Option(
        None, "--num-return-sequences", "-n", help="Continuations a prompt [default: 1]."
    ),
    seed: int | None = typer.Option(None, "--seed", help="Makes sampling repeatable."),
    device: Device = None,
    precision: Precision = None,
    config: Path | None = typer.Option(
        None, "--config", "-c", help="YAML file; its generation and runtime sections are used."
    ),
    assignments: Assignments = [],
    as_json: bool = typer.Option(False, "--json", help="Print JSON, one object a continuation."),
) -> None:
    """Continue a prompt, or a file of prompts.

    Greedy (always the likeliest token) unless --temperature, --top-k or --top-p is given.

    Examples:
      gptcli generate "Once upon a time" --model runs/mine --temperature 0.8
      gptcli generate --input prompts.txt --model runs/mine --output texts.jsonl
    """
    from gptcli.config.loading import load_settings
    from gptcli.data.input_rows import STANDARD_INPUT
    from gptcli.data.output_rows import check_output
    from gptcli.generation.prompts import Prompt, read_prompts

    generation = {
        "max_new_tokens": max_new_tokens,
        "max_length": max_length,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "num_return_sequences": num_return_sequences,
    }
    runtime = {"seed": seed, "device": device, "precision": precision}
    settings = load_settings(config, assignments, {"generation": generation, "runtime": runtime})
    if prompt == STANDARD_INPUT and input_file is None:
        prompt, input_file = None, STANDARD_INPUT
    if prompt is not None and input_file is not None:
        raise ConfigError("Give a prompt or --input, not both.")
    if prompt is None and input_file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise ConfigError('Give a prompt, such as "Once upon a time", or --input FILE.')
        input_file = STANDARD_INPUT
    prompts = [Prompt(prompt or "")] if input_file is None else read_prompts(input_file)
    if output_file is not None:
        check_output(output_file, input_file)

    from gptcli.hub import quiet_libraries
    from gptcli.pipelines.generate import Generator

    quiet_libraries()
    generator = Generator(model, settings.generation, settings.runtime, settings.runtime.given_seed)
    planned = [generator.plan(item) for item in prompts]
    with ExitStack() as stack:
        file = stack.enter_context(output_file.open("w", encoding="utf-8")) if output_file else None
        display = stack.enter_context(console.ProgressDisplay())
        if file is not None:
            display.start("Generating", len(planned))
        for number, item in enumerate(planned):
            if file is not None:
                for continuation in generator.run(item, number):
                    file.write(json.dumps(continuation.as_dict(), ensure_ascii=False) + "\n")
                file.flush()
                display.update(number + 1, f"{number + 1:,}/{len(planned):,} prompts")
            elif as_json:
                for continuation in generator.run(item, number):
                    console.write_json(continuation.as_dict())
            else:
                _print_text(generator, item, number, is_only=len(planned) == 1)
    if generator.seed_was_drawn and not as_json:
        console.say(f"Seed: {generator.seed} (--seed {generator.seed} makes this again)")


def _print_text(generator: Generator, planned: PromptRun, number: int, *, is_only: bool) -> None:
    """Print the prompt with its continuation as it is made; several continuations, one by one."""
    prompt = planned.prompt.text
    if is_only and generator.settings.num_return_sequences == 1:
        console.write_result(prompt, end="")
        results = generator.run(
            planned, number, lambda sequence, text: console.write_result(text, end="")
        )
        console.write_result("")
    else:
        results = generator.run(planned, number)
        for result in results:
            console.write_result(f"=== prompt {number + 1}, continuation {result.sequence + 1} ===")
            console.write_result(prompt + result.completion)
    if any(result.finish_reason == "context" for result in results):
        console.warn(f"stopped where the model's context of {generator.context_length} tokens is full.")
