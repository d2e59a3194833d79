"""`gptcli import`: a model that nanoGPT trained."""

from __future__ import annotations

from pathlib import Path

import typer

from gptcli import console


def import_checkpoint(
    checkpoint: Path = typer.Argument(..., metavar="CKPT", help="nanoGPT's checkpoint, ckpt.pt."),
    output: Path = typer.Option(..., "--output", "-o", metavar="DIR", help="A new folder to write."),
    tokenizer: str = typer.Option(
        ...,
        "--tokenizer",
        help="That of its training: a model or run folder, or a hub name (gpt2).",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print what was written as one JSON object."),
) -> None:
    """Make a model folder of a checkpoint of nanoGPT, for all other commands and programs.

    The file is read as weights alone: code in it is refused, not run.

    Examples:
      gptcli import ckpt.pt --tokenizer runs/mine --output imported
      gptcli import ckpt.pt --tokenizer runs/mine --output imported-too --json
    """
    with console.working("Importing"):
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.import_checkpoint import import_checkpoint as read

        quiet_libraries()
        result = read(checkpoint, output, tokenizer)
    if as_json:
        console.write_json(result.as_dict())
        return
    facts = [
        ("parameters", f"{result.parameters:,}"),
        ("layers", f"{result.layers}"),
        ("context", f"{result.context_length:,} tokens"),
        ("vocabulary", f"{result.vocab_size:,} tokens"),
    ]
    for line in console.fact_lines(f"Wrote {result.output}", facts):
        console.write_result(line)
