"""Prompts from the command line, a file or standard input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import DataError

STANDARD_INPUT = "-"
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
    if source == STANDARD_INPUT:
        # None if it was closed, as in `gptcli generate <&-`.
        name, data = "standard input", sys.stdin.buffer.read() if sys.stdin else b""
    else:
        name, data = source, _read_file(source)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte 0x{data[error.start]:02x} at offset {error.start:,} is not UTF-8. "
            "Convert the file to UTF-8."
        ) from None
    lines = text.removesuffix("\n").split("\n") if text else []
    is_json = source.lower().endswith(".jsonl") or (
        source == STANDARD_INPUT and bool(lines) and lines[0].lstrip().startswith("{")
    )
    numbered = ((f"{name}:{number}", line.rstrip("\r")) for number, line in enumerate(lines, 1))
    prompts = list(_json_prompts(numbered) if is_json else _text_prompts(numbered))
    if not prompts:
        raise DataError(f"{name} holds no prompt.")
    return prompts


def _read_file(path: str) -> bytes:
    if path.lower().endswith(OTHER_SUFFIXES):
        raise DataError(f"{path}: prompts are read from .txt (one a line) and .jsonl files (--input).")
    try:
        return Path(path).expanduser().read_bytes()
    except (FileNotFoundError, RuntimeError):  # RuntimeError: ~name of a user who does not exist.
        raise DataError(f"{path}: no such file (--input).") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read (--input): {error.strerror}.") from None


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
