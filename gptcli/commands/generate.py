"""`gptcli generate`: continue prompts with a model."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import typer

from gptcli import console
from gptcli.commands.options import Assignments, Device, Precision
from gptcli.errors import ConfigError


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
    context_end: str | None = typer.Option(
        None,
        "--context-end",
        help="Where the context is full: stop, slide (go on with its last half) or refuse "
        "[default: stop].",
    ),
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
        "context_end": context_end,
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

    with console.working("Loading"):
        from gptcli.pipelines.generate import Generator

        generator = Generator(model, settings.generation, settings.runtime, settings.runtime.given_seed)
        planned = [generator.plan(item) for item in prompts]
    is_streamed = len(planned) == 1 and settings.generation.num_return_sequences == 1
    is_text = output_file is None and not as_json
    is_full = False
    with ExitStack() as stack:
        file = stack.enter_context(output_file.open("w", encoding="utf-8")) if output_file else None
        display = stack.enter_context(console.ProgressDisplay())
        has_bar = file is not None or (display.can_draw() and not is_streamed)
        if has_bar:
            display.start("Generating", len(planned))
        if is_text and is_streamed:
            console.write_result(planned[0].prompt.text, end="")
        show = _show_text if is_text and is_streamed else _show_nothing
        for number, results in enumerate(generator.run(planned, show), 1):
            is_full |= any(generator.is_full(result) for result in results)
            if has_bar:
                display.update(number, f"{number:,}/{len(planned):,} prompts")
            if file is not None:
                for result in results:
                    file.write(json.dumps(result.as_dict(), ensure_ascii=False) + "\n")
                file.flush()
            elif as_json:
                lines = [json.dumps(result.as_dict(), ensure_ascii=False) for result in results]
                display.write_result("".join(f"{line}\n" for line in lines))
            elif is_streamed:
                console.write_result("")
            else:
                for result in results:
                    title = f"=== prompt {number}, continuation {result.sequence + 1} ==="
                    display.write_result(f"{title}\n{result.prompt}{result.completion}\n")
    if is_full and not as_json:
        slides = settings.generation.context_end == "slide"
        what = "went on with the last half in view" if slides else "stopped"
        console.warn(f"{what} where the model's context of {generator.context_length} tokens is full.")
    if generator.seed_was_drawn and not as_json:
        console.say(f"Seed: {generator.seed} (--seed {generator.seed} makes this again)")


def _show_text(prompt: int, sequence: int, text: str) -> None:
    console.write_result(text, end="")


def _show_nothing(prompt: int, sequence: int, text: str) -> None:
    pass
