"""Rows of a command's --input: a file, or standard input.

What comes in goes out again beside the answer, so every column is kept, and every row in its order: of a
.txt file, each line is a row, blank ones too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from gptcli.config.schema import DataSettings
from gptcli.data.labelled_texts import text_of
from gptcli.data.ledger import Reading
from gptcli.data.rows import Row, decoded_chunks, lines_of, read_rows, reading_file
from gptcli.data.sources import ROW_SUFFIXES, TEXT_SUFFIXES, FileSource, check_encoding
from gptcli.errors import ConfigError, DataError

STANDARD_INPUT = "-"
FORMATS = ("txt", "csv", "tsv", "jsonl", "json")


@dataclass(frozen=True)
class InputFile(FileSource):
    """A file, or standard input, that is read as files with this suffix are."""

    read_as: str

    def __str__(self) -> str:
        return "standard input" if self._is_standard_input else super().__str__()

    @property
    def suffix(self) -> str:
        return self.read_as

    @property
    def can_be_read_twice(self) -> bool:
        """False of standard input, pipes and devices."""
        return not self._is_standard_input and self.path.is_file()

    @property
    def _is_standard_input(self) -> bool:
        return str(self.path) == STANDARD_INPUT

    def open_binary(self) -> BinaryIO:
        """Open it for reading, unpacked; of what comes slowly, a read returns what is there."""
        if self.can_be_read_twice or self.path.suffix.lower() == ".gz":
            return super().open_binary()
        if not self._is_standard_input:
            return cast(BinaryIO, self.path.open("rb", buffering=0))
        try:
            # Without a buffer, whose lock Python wants when it ends, whoever is still reading.
            return cast(BinaryIO, open(sys.stdin.fileno(), "rb", buffering=0, closefd=False))
        except io.UnsupportedOperation:  # No file of the system's.
            return sys.stdin.buffer


@dataclass(frozen=True)
class InputText:
    """A text, or a pair, to be classified, and the row that it comes from."""

    where: str
    values: dict[str, Any]
    """All columns of the row, as they were read."""
    text: str
    text_pair: str | None = None

    @property
    def is_blank(self) -> bool:
        return not self.text or self.text_pair == ""


def check_unicode(text: str, error: type[ConfigError | DataError], where: str) -> None:
    """Raise `error`, naming `where`, if half a surrogate pair is in the text.

    Such halves stand for the bytes of an argument or a terminal that are not UTF-8, or come from \\ud800
    in JSON.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise error(
            f"{where} is not valid Unicode at character {problem.start + 1:,}. Write it as UTF-8."
        ) from None


def read_whole(name: str, option: str) -> tuple[str, str]:
    """Return what messages call it, and the text, of a UTF-8 file or of standard input.

    option: the one that names it. Raises DataError.
    """
    if name == STANDARD_INPUT:
        # None if it was closed, as in `gptcli generate <&-`.
        where, data = "standard input", sys.stdin.buffer.read() if sys.stdin else b""
    else:
        try:
            where, data = name, Path(name).expanduser().read_bytes()
        except (FileNotFoundError, RuntimeError):  # RuntimeError: ~name of a user who does not exist.
            raise DataError(f"{name}: no such file ({option}).") from None
        except OSError as error:
            raise DataError(f"{name} cannot be read ({option}): {error.strerror}.") from None
    try:
        return where, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte 0x{data[error.start]:02x} at offset {error.start:,} is not UTF-8. "
            "Convert the file to UTF-8."
        ) from None


def find_input(name: str, data: DataSettings, read_as: str | None) -> InputFile:
    """Return the file that `name` is, or standard input.

    read_as: one of FORMATS; None goes by the file's name, and takes standard input for text. Raises
    DataError, or ConfigError for a format or an encoding that there is not.
    """
    check_encoding(data.encoding)
    if read_as is not None and read_as not in FORMATS:
        raise ConfigError(f"--input-format is {read_as!r}; it must be one of {', '.join(FORMATS)}.")
    if name == STANDARD_INPUT:
        if sys.stdin is None:  # As in `gptcli classify --input - <&-`.
            raise DataError("standard input is closed (--input -).")
        return InputFile(Path(name), f".{read_as or 'txt'}")
    try:
        path = Path(name).expanduser()
        is_folder, size = path.is_dir(), path.stat().st_size
    except (FileNotFoundError, RuntimeError):  # RuntimeError: ~name of a user who does not exist.
        raise DataError(f"{name}: no such file (--input).") from None
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name:.60} cannot be read (--input): {problem}.") from None
    if is_folder:
        raise DataError(f"{name} is a folder; --input takes a file.")
    suffix = FileSource(path).suffix if read_as is None else f".{read_as}"
    if suffix not in TEXT_SUFFIXES + ROW_SUFFIXES:
        raise DataError(
            f"{name}: its name does not say how to read it (--input). Give --input-format "
            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        )
    source = InputFile(path, suffix)
    if source.can_be_read_twice and size == 0:
        raise DataError(f"{source} is empty (0 bytes).")
    return source


def read_texts(source: InputFile, data: DataSettings, reading: Reading) -> Iterator[InputText]:
    """Yield every row of a file with its text, without white space around it, as in training.

    Raises DataError, naming the row, for what cannot be read or is no text.
    """
    columns = data.columns
    needed = {"text": columns.text}
    if columns.text_pair is not None:
        needed["text_pair"] = columns.text_pair
    for row in _rows(source, data, reading, needed):
        text = text_of(row, columns.text, data, reading)
        pair = None if columns.text_pair is None else text_of(row, columns.text_pair, data, reading)
        yield InputText(row.where, row.values, text, pair)


def as_trained(text: str) -> str:
    """Return a text as training reads it: CRLF as LF, no white space around."""
    return text.replace("\r\n", "\n").strip()


def _rows(
    source: InputFile, data: DataSettings, reading: Reading, columns: Mapping[str, str]
) -> Iterator[Row]:
    if source.suffix not in TEXT_SUFFIXES:
        yield from read_rows(source, data, reading, columns, keep_others=True)
        return
    if len(columns) > 1:
        raise DataError(f"{source} has a text a line, without columns. Put pairs in CSV or JSONL.")
    with reading_file(source):
        chunks = decoded_chunks(source, data, reading)
        for number, line in enumerate(lines_of(chunks, str(source)), 1):
            reading.rows += 1
            yield Row(f"{source}:{number}", {data.columns.text: line.rstrip("\r\n")})
