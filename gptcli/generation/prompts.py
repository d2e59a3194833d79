"""Prompts from the command line, a file or standard input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptcli.data.input_rows import STANDARD_INPUT, read_whole
from gptcli.errors import DataError

# Files whose lines are no prompts. Other names are text: /dev/fd/63 of a shell, prompts.en, ...
OTHER_SUFFIXES = (".csv", ".gz", ".json", ".parquet", ".pdf", ".docx", ".zip")


@dataclass(frozen=True)
class Prompt:
    """A text to continue, and where it stands (None: on the command line)."""

    text: str
    origin: str | None = None


def read_prompts(source: str) -> list[Prompt]:
    """Return the prompts of a .jsonl file (key "prompt" or "text"), a text file (one a line), or "-".

    Standard input is read as text lines, or as JSON lines if its first line is a JSON object.
    Raises DataError naming the line that cannot be read, or if there is none.
    """
    if source.lower().endswith(OTHER_SUFFIXES):
        raise DataError(f"{source}: prompts are read from .txt (one a line) and .jsonl files (--input).")
    name, text = read_whole(source, "--input")
    lines = text.removesuffix("\n").split("\n") if text else []
    is_json = source.lower().endswith(".jsonl") or (
        source == STANDARD_INPUT and bool(lines) and lines[0].lstrip().startswith("{")
    )
    numbered = ((f"{name}:{number}", line.rstrip("\r")) for number, line in enumerate(lines, 1))
    prompts = list(_json_prompts(numbered) if is_json else _text_prompts(numbered))
    if not prompts:
        raise DataError(f"{name} holds no prompt.")
    return prompts


def _text_prompts(lines: Iterable[tuple[str, str]]) -> Iterator[Prompt]:
    for origin, line in lines:
        if line.strip():
            yield Prompt(line, origin)


def _json_prompts(lines: Iterable[tuple[str, str]]) -> Iterator[Prompt]:
    for origin, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{origin} is not JSON: {error}.") from None
        found = [row[key] for key in ("prompt", "text") if key in row] if isinstance(row, dict) else []
        if not found or not isinstance(found[0], str):
            raise DataError(f'{origin} has no "prompt" (or "text") that is a string.')
        yield Prompt(found[0], origin)
