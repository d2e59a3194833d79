"""Rows: the objects, lines or records of a table, each with the place that it comes from.

CSV, TSV, JSONL, JSON and Parquet files and hub data sets have columns; of a .txt file each line or the
whole of it is a row, labelled with the name of its file or folder.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gptcli.config.schema import DataSettings
from gptcli.data.builtin_text import DOCSTRINGS, labelled_docstrings
from gptcli.data.ledger import Reading
from gptcli.data.sources import TEXT_SUFFIXES, BuiltinSource, FileSource, HubSource, Source
from gptcli.errors import DataError
from gptcli.hub import first_line

# Text is worked on in parts of that size: small enough for the arrays of its words to stay in a cache.
READ_BYTES = 1 << 19
# A small file can unpack to any size. This much of it must fit in memory:
MAX_ROW = 2**28  # characters of a row, or of a line
MAX_JSON = 2**30  # characters of a .json file, which is read as a whole


class Row(NamedTuple):
    """One row, and where it is, for messages."""

    where: str
    values: dict[str, Any]


def read_rows(
    source: Source,
    data: DataSettings,
    reading: Reading,
    columns: Mapping[str, str] | None = None,
    *,
    optional: Iterable[str] = (),
    keep_others: bool = False,
) -> Iterator[Row]:
    """Yield the rows of a source, in order, with their values as they are written: CSV has only text.

    columns: {the setting's name: the column} of those that are needed, and of those in `optional`, which
    a source may lack; the values hold these alone, or all others too. None: all that there are. Raises
    DataError naming the file, and the row or byte, that cannot be read.
    """
    wanted = _Columns(columns, frozenset(optional), keep_others)
    match source:
        case BuiltinSource():
            if source.name != DOCSTRINGS:
                raise DataError(f"{source} is plain text; it has no rows.")
            names = wanted.of(("text", "label"), str(source))
            for number, (text, label) in enumerate(labelled_docstrings(), 1):
                reading.rows += 1
                values = {"text": text, "label": label}
                yield Row(f"{source}: row {number}", {name: values[name] for name in names})
        case HubSource(rows=table):
            names = wanted.of(table.column_names, str(source))
            # Without columns `datasets` has no rows either.
            rows = table.select_columns(names) if names else ({} for _ in range(len(table)))
            for number, values in enumerate(rows, 1):
                reading.rows += 1
                yield Row(f"{source}: row {number}", values)
        case FileSource():
            reading.files += 1
            with reading_file(source):
                for row in _rows_of_file(source, data, reading, wanted):
                    reading.rows += 1
                    yield row


class _Columns:
    """Which columns are read."""

    def __init__(
        self, columns: Mapping[str, str] | None, optional: frozenset[str], keep_others: bool
    ) -> None:
        self._columns = columns
        self._optional = optional
        self._is_all = columns is None or keep_others

    def of(self, names: Iterable[str], where: str, hint: str = "") -> list[str]:
        """Return those of `names` that are read; DataError if one is missing or there twice.

        hint: what else to say if none of those that are needed is there.
        """
        names = list(names)
        columns = {} if self._columns is None else self._columns
        for setting, column in columns.items():
            if column not in names and setting not in self._optional:
                listed = ", ".join(f"{name!s:.40}" for name in names[:20]) or "none"
                raise DataError(
                    f"{where} has no column {column!r}; its columns are: {listed}. "
                    f"Set data.columns.{setting}.{'' if set(columns.values()) & set(names) else hint}"
                )
        read = names if self._is_all else dict.fromkeys(columns.values())
        # Others may share a name: spreadsheets write empty columns at the right.
        for name in read:
            if names.count(name) > 1:
                raise DataError(f"{where} has two columns {name!r}; rename one of them.")
        return [name for name in read if name in names]


@contextmanager
def reading_file(source: FileSource) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into a DataError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{source} is not a whole gzip file: {error}.") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {first_line(error)}.") from error


def _rows_of_file(
    source: FileSource, data: DataSettings, reading: Reading, wanted: _Columns
) -> Iterator[Row]:
    if source.suffix == ".parquet":
        yield from _parquet_rows(source, wanted)
        return
    chunks = decoded_chunks(source, data, reading)
    if source.suffix in TEXT_SUFFIXES:
        yield from _text_rows(source, chunks, data, wanted)
    elif source.suffix == ".jsonl":
        yield from _jsonl_rows(source, chunks, wanted)
    elif source.suffix == ".json":
        yield from _json_rows(source, chunks, wanted)
    else:
        yield from _csv_rows(source, chunks, data, wanted)


def _text_rows(
    source: FileSource, chunks: Iterable[str], data: DataSettings, wanted: _Columns
) -> Iterator[Row]:
    columns = data.columns
    # A name is one label, which cannot fill a list of columns.
    label_column = columns.label if isinstance(columns.label, str) else "label"
    names = wanted.of((columns.text, label_column), str(source))
    # "a.txt" alone does not name its folder; resolve() would follow a link to another name.
    path = Path(os.path.abspath(str(source)))  # noqa: PTH100

    def row(where: str, text: str, label: str) -> Row:
        values = {columns.text: text, label_column: label}
        return Row(where, {name: values[name] for name in names})

    if data.text_unit == "line":
        label = path.name.partition(".")[0]
        for number, line in enumerate(lines_of(chunks, str(source)), 1):
            if line.strip():
                yield row(f"{source}:{number}", line.rstrip("\r\n"), label)
        return
    parts, length = [], 0
    for chunk in chunks:
        parts.append(chunk)
        length += len(chunk)
        if length > MAX_ROW:
            raise DataError(f"{source} has over {MAX_ROW:,} characters; it is not read as one example.")
    yield row(str(source), "".join(parts), path.parent.name)


def _json_object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object: {json.dumps(value)[:60]}.")
    return value


def _select(values: dict[str, Any], where: str, wanted: _Columns) -> Row:
    return Row(where, {name: values[name] for name in wanted.of(values, where)})


def _jsonl_rows(source: FileSource, chunks: Iterable[str], wanted: _Columns) -> Iterator[Row]:
    for number, line in enumerate(lines_of(chunks, str(source)), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also for an endless number.
            raise DataError(f"{where} is not JSON: {first_line(error)}.") from error
        yield _select(_json_object(value, where), where, wanted)


def _json_rows(source: FileSource, chunks: Iterable[str], wanted: _Columns) -> Iterator[Row]:
    """Yield the objects of a JSON list, or of the list "data" in an object, as SQuAD has it."""
    parts, length = [], 0
    for chunk in chunks:
        parts.append(chunk)
        length += len(chunk)
        if length > MAX_JSON:
            raise DataError(f"{source} has over {MAX_JSON:,} characters; use JSONL, a row a line.")
    try:
        content = json.loads("".join(parts))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not JSON: {first_line(error)}.") from error
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f'{source} is neither a JSON list of objects nor an object with a list "data".')
    for number, value in enumerate(rows, 1):
        where = f"{source}: item {number}"
        yield _select(_json_object(value, where), where, wanted)


def _csv_rows(
    source: FileSource, chunks: Iterable[str], data: DataSettings, wanted: _Columns
) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW)  # The default of 128 KiB is less than one article.
    lines = lines_of(chunks, str(source))
    if source.suffix == ".tsv":
        # A tab cannot stand in a field, so that quotes mean nothing there but themselves.
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    try:
        header = data.column_names or next(reader, [])
        hint = "" if data.column_names else " If the file has no header, set data.column_names."
        names = wanted.of(header, str(source), hint)
        places = [(name, header.index(name)) for name in names]
        for fields in reader:
            where = f"{source}:{reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(header):
                whose = "data.column_names" if data.column_names else "the header"
                raise DataError(
                    f"{where} has {len(fields)} fields, but {whose} has {len(header)} columns."
                )
            yield Row(where, {name: fields[place] for name, place in places})
    except csv.Error as error:
        raise DataError(f"{source}:{reader.line_num} is not valid CSV: {error}.") from error


def _parquet_rows(source: FileSource, wanted: _Columns) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with source.open_binary() as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            names = wanted.of(parquet.schema_arrow.names, str(source))
            number = 0
            for batch in parquet.iter_batches(batch_size=1000, columns=names):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{source}: row {number}", values)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not a readable Parquet file: {first_line(error)}") from error


def decoded_chunks(source: FileSource, data: DataSettings, reading: Reading) -> Iterator[str]:
    """Yield the file's text as decoded; an undecodable byte stops or is counted, as settings say."""
    fed = 0  # Bytes given to the decoder; those it holds back lead the next error.object.

    def count_and_replace(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        reading.undecodable_bytes_replaced += error.end - error.start
        return "\ufffd", error.end

    codecs.register_error("gptcli-replace", count_and_replace)
    errors = "strict" if data.encoding_errors == "strict" else "gptcli-replace"
    decoder = codecs.getincrementaldecoder(data.encoding)(errors)
    is_at_start = True
    with source.open_binary() as file:
        while True:
            block = file.read(READ_BYTES)
            fed += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = fed - len(error.object) + error.start
                bad_byte = error.object[error.start]
                raise DataError(_undecodable(source, data.encoding, offset, bad_byte)) from error
            if text and is_at_start:
                is_at_start = False
                if text[0] == "\ufeff":
                    reading.byte_order_marks_removed += 1
                    text = text[1:]
            if text:
                yield whole_characters(text, str(source), data, reading)
            if not block:
                return


def _undecodable(source: FileSource, encoding: str, offset: int, byte: int) -> str:
    hint = (
        "It looks like UTF-16: set data.encoding to utf-16."
        if offset == 0 and byte in (0xFF, 0xFE)
        else "If the file has another encoding, set data.encoding (latin-1, cp1252, shift_jis, "
        "gb18030, ...); to replace such bytes and count them, set data.encoding_errors to replace."
    )
    return f"{source}: byte 0x{byte:02x} at offset {offset:,} is not {encoding.upper()}. {hint}"


def whole_characters(text: str, where: str, data: DataSettings, reading: Reading) -> str:
    """Return `text` without lone surrogates, which JSON can write (\\ud83d) but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if data.encoding_errors == "strict":
            raise DataError(
                f"{where}: \\u{ord(text[error.start]):04x} is half of a surrogate pair, no character. "
                "Mend it; to replace and count such halves, set data.encoding_errors to replace."
            ) from error
        text, count = re.subn("[\ud800-\udfff]", "\ufffd", text)
        reading.lone_surrogates_replaced += count
    return text


def lines_of(chunks: Iterable[str], where: str) -> Iterator[str]:
    """Yield lines with their line feed. Only that ends a line: text may hold U+2028 and the like."""
    rest: list[str] = []
    length = 0
    for chunk in chunks:
        *whole, last = chunk.split("\n")
        for line in whole:
            yield "".join([*rest, line, "\n"])
            rest, length = [], 0
        if last:
            rest.append(last)
            length += len(last)
            if length > MAX_ROW:
                raise DataError(f"{where} has a line of over {MAX_ROW:,} characters; it is not read.")
    if rest:
        yield "".join(rest)
