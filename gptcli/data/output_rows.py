"""Rows of a command's --output: JSON lines, CSV or TSV, in a file that appears whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gptcli.errors import ConfigError, DataError, EnvironmentProblem
from gptcli.files import replace_file, writing_to

FORMATS = ("jsonl", "csv", "tsv")


def output_format(path: Path | None, wanted: str | None) -> str:
    """Return what is written: what is wanted, else what the file's name says, else jsonl.

    Raises ConfigError for another format.
    """
    if wanted is None:
        suffix = "jsonl" if path is None else path.suffix.lower().removeprefix(".")
        if suffix not in FORMATS:
            raise ConfigError(
                f"--output {path}: its name does not say what to write. End it in .jsonl, .csv or .tsv, "
                "or give --output-format."
            )
        return suffix
    if wanted not in FORMATS:
        raise ConfigError(f"--output-format is {wanted!r}; it must be one of {', '.join(FORMATS)}.")
    return wanted


def check_output(
    path: Path, input_file: str | None, option: str = "--output", input_option: str = "--input"
) -> None:
    """Raise ConfigError or EnvironmentProblem if `path` cannot be written, or is what is read.

    option, input_option: those that name the two files.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; it takes a file.")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: the folder {path.parent} does not exist.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise EnvironmentProblem(f"{option} {path} cannot be written: permission denied.")
    if input_file is not None and Path(input_file).resolve() in (path.resolve(), partial_of(path)):
        raise ConfigError(f"{option} {path} is the {input_option} file; it would be overwritten.")


def partial_of(path: Path) -> Path:
    """Return where a file is written before it is whole."""
    path = path.resolve()  # Through a link, so that the file behind it is replaced and not the link.
    return path.with_name(f"{path.name}.partial")


class OutputFile:
    """Text on its way to a file: under FILE.partial until all of it is there. Use as a context manager.

    After a failure, what has been written stays under that name. A pipe or a device is written directly.
    Raises EnvironmentProblem if the disk does not take it.
    """

    def __init__(self, path: Path) -> None:
        self._target = path.resolve()
        is_direct = path.exists() and not path.is_file()
        self.partial = path if is_direct else partial_of(path)
        self.is_whole = is_direct
        self.is_begun = False

    def __enter__(self) -> Self:
        with writing_to(self.partial):
            # What holds half a surrogate pair is written as \ud83d, which JSON reads back.
            self._file = self.partial.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        return self

    def write(self, text: str) -> None:
        with writing_to(self.partial):
            self._file.write(text)
            self._file.flush()
        self.is_begun = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with writing_to(self.partial):
            self._file.close()
        if self.is_whole:
            return
        if kind is None:
            with writing_to(self._target):
                replace_file(self.partial, self._target)
            self.is_whole = True
        elif not self.is_begun:
            self.partial.unlink(missing_ok=True)


class RowWriter:
    """Turns rows into lines of one of FORMATS; the first row decides the columns of CSV and TSV."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self.is_nested = kind == "jsonl"
        """Values may be objects and lists, and rows may differ in their columns."""
        self._columns: list[str] | None = None

    def lines(self, values: dict[str, Any], where: str) -> str:
        """Return the row, a header before it if it is the first.

        where: the place that the row comes from. Raises DataError for what the format cannot hold.
        """
        if self.is_nested:
            return json_line(values) + "\n"
        if self._columns is None:
            self._columns = list(values)
            return self._fields(self._columns, where) + self.lines(values, where)
        others = [name for name in values if name not in self._columns]
        if others:
            raise DataError(
                f"{where} has {others[0]!r}, which the first row has not; in .{self._kind}, all rows "
                "have the same columns. Write .jsonl."
            )
        return self._fields([_field(values.get(name)) for name in self._columns], where)

    def _fields(self, fields: list[str], where: str) -> str:
        if self._kind == "csv":
            buffer = io.StringIO()
            # Carriage returns and line feeds are put into quotes if both are in the line's end.
            csv.writer(buffer, lineterminator="\r\n").writerow(fields)
            return buffer.getvalue().removesuffix("\r\n") + "\n"
        # As it is read: quotes mean nothing in TSV but themselves.
        if any(set("\t\r\n") & set(field) for field in fields):
            raise DataError(f"{where} holds a tab or a line end, which .tsv cannot. Write .csv.")
        return "\t".join(fields) + "\n"


def json_line(values: dict[str, Any]) -> str:
    """Return a JSON object on one line; what JSON has not (dates, bytes) as text, NaN as null."""
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_without_nan(values), ensure_ascii=False, allow_nan=False, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
