"""`gptcli export`: a model for other programs."""

from __future__ import annotations

from pathlib import Path

import typer

from gptcli import console


def export(
    model: str = typer.Option(..., "--model", "-m", help="Run folder, model folder or hub name."),
    output: Path = typer.Option(..., "--output", "-o", metavar="DIR", help="A new folder to write."),
    kind: str = typer.Option("huggingface", "--format", help="huggingface, ctranslate2 or gguf."),
    precision: str = typer.Option(
        "fp32",
        "--precision",
        help="fp32, bf16 or fp16; for ctranslate2 also int8, for gguf also q8_0.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print what was written as one JSON object."),
) -> None:
    """Write a model to a folder for other programs, with a model card of what is known of it.

    A plain Hugging Face folder, adapters (LoRA) merged; or one for CTranslate2, made by its own
    converter and opened by its engine; or a GGUF file for llama.cpp and what is built on it, such as
    Ollama. The last two are compared with the model in fp32.

    Examples:
      gptcli export --model runs/mine --output exported --precision bf16
      gptcli export --model runs/mine --output exported-too --json
    """
    with console.working("Exporting"):
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.export import export as write

        quiet_libraries()
        result = write(model, output, kind, precision)
    if result.compared_tokens is not None and result.equal_tokens != result.compared_tokens:
        console.warn(
            f"In {precision}, {result.equal_tokens} of {result.compared_tokens} likeliest tokens are "
            "those of the model in fp32: where two are nearly as likely, rounding decides."
        )
    if as_json:
        console.write_json(result.as_dict())
        return
    facts = [
        ("format", f"{result.format}, {result.precision}"),
        ("parameters", f"{result.parameters:,}"),
        ("size", f"{result.bytes / 1e6:,.1f} MB"),
    ]
    if result.compared_tokens is not None:
        count = f"{result.equal_tokens} of {result.compared_tokens}"
        facts.append(("likeliest tokens", f"{count} as the model in fp32"))
    for line in console.fact_lines(f"Wrote {result.output}", facts):
        console.write_result(line)
