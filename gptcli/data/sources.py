"""From `data.source` to documents.

1. `find_sources` turns the setting into a list of sources: the embedded text, files, a hub data set.
2. `Source.fingerprint` names its content, so that a token store is never reused for other text.
3. `read_documents` streams the text as pieces of one to two million characters at most. A piece ends
   where cutting cannot change how GPT-2 tokenizes it; the last piece of a document says so.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from gptcli.config.schema import DataSettings
from gptcli.data.builtin_text import PYTHON_DOCS, python_docs
from gptcli.data.ledger import Reading
from gptcli.errors import ConfigError, DataError, EnvironmentProblem
from gptcli.hub import first_line, is_network_failure, use_cache_if_unreachable

END_OF_TEXT = "<|endoftext|>"
TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".csv", ".parquet")
READ_BYTES = 1 << 20
MAX_LISTED = 100
# A small file can unpack to any size. Text is streamed, but this much of it must fit in memory:
MAX_ROW = 2**28  # characters of a row, or of a line
MAX_LEADING_SPACE = 2**24  # white space characters that a document begins with


class Piece(NamedTuple):
    """A part of a document's text, and whether the document ends with it."""

    text: str
    ends_document: bool


@dataclass(frozen=True)
class BuiltinSource:
    """Text embedded in CPython."""

    name: str

    def __str__(self) -> str:
        return f"builtin:{self.name}"

    def fingerprint(self) -> str:
        # The standard library changes with every Python release.
        return f"builtin:{self.name}:{sys.version}"


@dataclass(frozen=True)
class FileSource:
    """One local file."""

    path: Path

    def __str__(self) -> str:
        # A name that is not UTF-8 is shown with escapes, so that it can be printed and written.
        return str(self.path).encode(errors="backslashreplace").decode()

    def fingerprint(self) -> str:
        try:
            with self.path.open("rb") as file:
                return f"file:{self.suffix}:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise DataError(f"{self} cannot be read: {error.strerror}.") from error

    @property
    def suffix(self) -> str:
        """The suffix that says how to read it, .gz aside, in lower case."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        if suffixes and suffixes[-1] == ".gz":
            suffixes.pop()
        return suffixes[-1] if suffixes else ""


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face hub, loaded by `datasets` into its own cache."""

    name: str
    rows: Any
    """A `datasets.Dataset`."""

    def __str__(self) -> str:
        return self.name

    def fingerprint(self) -> str:
        # `datasets` derives this from the files' hashes and the loading options.
        return f"hub:{self.name}:{self.rows._fingerprint}"


Source = BuiltinSource | FileSource | HubSource


def find_sources(
    setting: str | list[str], data: DataSettings, reading: Reading, *, name: str = "data.source"
) -> list[Source]:
    """Return what `setting` stands for: a folder's or glob's files sorted by path, each file once.

    Counts files that a folder holds but that are not read in `reading`. Raises DataError if there is
    nothing to read, and EnvironmentProblem if the hub cannot be reached.
    """
    _check_encoding(data.encoding)
    sources: dict[object, Source] = {}
    for item in [setting] if isinstance(setting, str) else setting:
        for source in _find_source(item, data, reading, name):
            # One file may be given by several paths.
            key = source.path.resolve() if isinstance(source, FileSource) else str(source)
            sources.setdefault(key, source)
    for source in sources.values():
        if isinstance(source, FileSource):
            _check_file(source)
    return list(sources.values())


def _find_source(item: str, data: DataSettings, reading: Reading, name: str) -> list[Source]:
    if item.startswith("builtin:"):
        if item != f"builtin:{PYTHON_DOCS}":
            raise ConfigError(f"{name} is {item}; the embedded text is builtin:{PYTHON_DOCS}.")
        return [BuiltinSource(PYTHON_DOCS)]
    try:
        path = Path(item).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name of a user who does not exist.
        problem = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name}: {item:.60} cannot be looked up: {problem}.") from error
    if is_folder:
        return _files_of_folder(path, reading, name)
    if is_there:
        if FileSource(path).suffix not in TEXT_SUFFIXES + ROW_SUFFIXES:
            raise DataError(
                f"{item}: files of type {path.suffix or '(no suffix)'} are not read. "
                f"Use {', '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}, or one of these with .gz."
            )
        return [FileSource(path)]
    if glob.has_magic(item):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if match.is_file()]
        readable = _readable_files(files, reading)
        if not readable:
            raise DataError(f"{name}: no text file matches {item}.")
        return readable
    looks_like_a_path = (
        item.startswith((".", "/", "~"))
        or item.count("/") > 1
        or item.endswith("/")
        or path.suffix.lower() in (*TEXT_SUFFIXES, *ROW_SUFFIXES, ".gz", ".json", ".zip")
    )
    if looks_like_a_path:
        raise DataError(f"{item}: no such file or folder ({name}, seen from {Path.cwd()}).")
    return [_load_from_hub(item, data)]


def _files_of_folder(folder: Path, reading: Reading, name: str) -> list[Source]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        # A link to a folder may lead round in a circle: it is not followed, but listed as left out.
        links = [entry for entry in folders if Path(parent, entry).is_symlink()]
        files += [Path(parent, entry) for entry in (*names, *links) if not entry.startswith(".")]
    readable = _readable_files(sorted(files), reading)
    if not readable:
        suffixes = ", ".join(TEXT_SUFFIXES + ROW_SUFFIXES)
        raise DataError(f"{folder} holds no text ({name}): no file in it ends in {suffixes} or .gz.")
    return readable


def _readable_files(files: list[Path], reading: Reading) -> list[Source]:
    readable: list[Source] = []
    for file in files:
        source = FileSource(file)
        is_text = source.suffix in TEXT_SUFFIXES + ROW_SUFFIXES and not file.is_dir()
        # Only a file that is named itself must hold text; among others, an empty one is nothing lost.
        if is_text and not (file.is_file() and file.stat().st_size == 0):
            readable.append(source)
        elif len(reading.files_left_out) < MAX_LISTED:
            reading.files_left_out.append(str(source))
    return readable


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)  # Refuses codecs that are no text encodings, such as base64.
        codecs.getincrementaldecoder(encoding)
    except (LookupError, UnicodeError, ValueError):
        raise ConfigError(
            f"data.encoding is {encoding!r}; Python knows no such text encoding. "
            "Try utf-8, utf-16, latin-1, cp1252, shift_jis or gb18030."
        ) from None


def _check_file(source: FileSource) -> None:
    try:
        if source.path.stat().st_size == 0:
            raise DataError(f"{source} is empty (0 bytes).")
        with source.path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}.") from None


def _load_from_hub(name: str, data: DataSettings) -> HubSource:
    use_cache_if_unreachable()
    import datasets  # Now, because it reads at import whether it may ask the hub.

    try:
        rows = datasets.load_dataset(name, data.hub_subset, split=data.hub_split)
    except Exception as error:  # `datasets` raises whatever its builders and parsers raise.
        if is_network_failure(error):
            raise EnvironmentProblem(
                f"{name} is no file or folder here, and the hub cannot be reached to look for a data "
                "set of that name. Check the path or the network."
            ) from error
        raise DataError(
            f"{name} is no file or folder here, and as a hub data set: {first_line(error)}"
        ) from error
    return HubSource(name, rows)


def read_documents(sources: Iterable[Source], data: DataSettings, reading: Reading) -> Iterator[Piece]:
    """Yield the text of all documents of `sources`, in order, in pieces.

    Documents that are only white space are dropped, CRLF becomes LF, a byte-order mark is removed, and
    all of it is counted in `reading`.
    Raises DataError naming the file, and the byte or row, that cannot be read.
    """
    for source in sources:
        for piece in _split_at_markers(_raw_pieces(source, data, reading), reading, str(source)):
            reading.bytes += len(piece.text.encode())
            reading.documents += piece.ends_document
            yield piece


def _raw_pieces(source: Source, data: DataSettings, reading: Reading) -> Iterator[Piece]:
    match source:
        case BuiltinSource():
            for document in python_docs():
                yield Piece(document, True)
        case HubSource(rows=rows):
            _check_column(data.columns.text, rows.column_names, str(source))
            for number, row in enumerate(rows.select_columns([data.columns.text]), 1):
                reading.rows += 1
                where = f"{source}: row {number}"
                yield from _pieces_of_row(row[data.columns.text], where, data, reading)
        case FileSource():
            reading.files += 1
            try:
                yield from _pieces_of_file(source, data, reading)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{source} is not a whole gzip file: {error}.") from error
            except OSError as error:
                raise DataError(f"{source} cannot be read: {first_line(error)}.") from error


def _pieces_of_file(source: FileSource, data: DataSettings, reading: Reading) -> Iterator[Piece]:
    if source.suffix == ".parquet":
        for where, value in _parquet_values(source, data.columns.text):
            reading.rows += 1
            yield from _pieces_of_row(value, where, data, reading)
        return
    chunks = _decoded_chunks(source, data, reading)
    if source.suffix in TEXT_SUFFIXES:
        if data.text_unit == "line":
            for line in _lines(chunks, str(source)):
                reading.carriage_returns_removed += line.endswith("\r\n")
                end = "\r\n" if line.endswith("\r\n") else "\n"
                yield from _pieces_of_text(_slices(line.removesuffix(end)))
        else:
            yield from _pieces_of_text(chunks)
        return
    values = (
        _jsonl_values(source, chunks, data.columns.text)
        if source.suffix == ".jsonl"
        else _csv_values(source, chunks, data.columns.text)
    )
    for where, value in values:
        reading.rows += 1
        yield from _pieces_of_row(value, where, data, reading)


def _open_binary(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _decoded_chunks(source: FileSource, data: DataSettings, reading: Reading) -> Iterator[str]:
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
    with _open_binary(source.path) as file:
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
                yield _whole_characters(text, str(source), data, reading)
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


def _whole_characters(text: str, where: str, data: DataSettings, reading: Reading) -> str:
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


def _lines(chunks: Iterable[str], where: str) -> Iterator[str]:
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


# A cut before white space that follows text is exact: in GPT-2's splitting pattern no match crosses it
# and nothing looks back over it. "\r\n" and <|endoftext|> are never cut apart there either.
_LAST_WHITE_SPACE = re.compile(r".*\S(?=[ \n\r\t])", re.DOTALL)
# The same is true before punctuation that follows a letter or digit, for scripts without spaces.
_LAST_PUNCTUATION = re.compile(
    r".*(?:[^\W_](?=[.,;:!?<\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff01\uff1f])|.(?=<\|endoftext\|>))",
    re.DOTALL,
)


def _pieces_of_text(chunks: Iterable[str]) -> Iterator[Piece]:
    """Yield one document as pieces, cut where it does not change the tokens."""
    held = ""
    for chunk in chunks:
        held += chunk
        if len(held) < READ_BYTES:
            continue
        cut = _LAST_WHITE_SPACE.match(held) or _LAST_PUNCTUATION.match(held)
        if cut:
            end = cut.end()
        elif len(held) >= 2 * READ_BYTES:
            # One endless word, or nothing but white space: this cut may change the tokens beside it.
            end = READ_BYTES - (held[READ_BYTES - 1 : READ_BYTES + 1] == "\r\n")
        else:
            end = 0
        if end:
            yield Piece(held[:end], False)
            held = held[end:]
    yield Piece(held, True)


def _slices(text: str) -> Iterator[str]:
    return (text[start : start + READ_BYTES] for start in range(0, len(text), READ_BYTES))


def _pieces_of_row(value: object, where: str, data: DataSettings, reading: Reading) -> Iterator[Piece]:
    if value is None:
        yield Piece("", True)
    elif isinstance(value, str):
        yield from _pieces_of_text(_slices(_whole_characters(value, where, data, reading)))
    else:
        raise DataError(f"{where}: the text is {type(value).__name__} {value!r:.60}, not a string.")


def _check_column(column: str, columns: Iterable[str], where: str) -> None:
    columns = list(columns)
    if column not in columns:
        listed = ", ".join(map(str, columns[:20])) or "none"
        raise DataError(
            f"{where} has no column {column!r}; its columns are: {listed}. Set data.columns.text."
        )


def _jsonl_values(
    source: FileSource, chunks: Iterable[str], column: str
) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(_lines(chunks, str(source)), 1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError also for an endless number.
            raise DataError(f"{where} is not JSON: {first_line(error)}.") from error
        if not isinstance(row, dict):
            raise DataError(f"{where} is not a JSON object: {line.strip()[:60]}.")
        _check_column(column, row, where)
        yield where, row[column]


def _csv_values(source: FileSource, chunks: Iterable[str], column: str) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(MAX_ROW)  # The default of 128 KiB is less than one article.
    rows = csv.reader(_lines(chunks, str(source)), strict=True)
    try:
        header = next(rows, [])
        _check_column(column, header, str(source))
        index = header.index(column)
        for row in rows:
            where = f"{source}:{rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where} has {len(row)} fields, but the header has {len(header)} columns."
                )
            yield where, row[index]
    except csv.Error as error:
        raise DataError(f"{source}:{rows.line_num} is not valid CSV: {error}.") from error


def _parquet_values(source: FileSource, column: str) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with _open_binary(source.path) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            _check_column(column, parquet.schema_arrow.names, str(source))
            number = 0
            for batch in parquet.iter_batches(batch_size=1000, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield f"{source}: row {number}", value
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not a readable Parquet file: {first_line(error)}") from error


def _split_at_markers(pieces: Iterable[Piece], reading: Reading, where: str) -> Iterator[Piece]:
    """End a document at each literal <|endoftext|>; drop documents that are only white space."""
    is_open = False  # Whether a piece of the current document has been yielded.
    lead = ""  # White space that the current document began with.
    follows_marker = False
    for text, ends_document in pieces:
        reading.carriage_returns_removed += text.count("\r\n")
        parts = text.replace("\r\n", "\n").split(END_OF_TEXT)
        reading.end_of_text_markers += len(parts) - 1
        for index, part in enumerate(parts):
            ends_at_marker = index < len(parts) - 1
            ends = ends_document or ends_at_marker
            if is_open or part.strip():
                yield Piece(lead + part, ends)
                is_open, lead = not ends, ""
            else:
                # What stands behind a document's last marker is no document unless it has text.
                reading.empty_documents_dropped += ends and (ends_at_marker or not follows_marker)
                lead = "" if ends else lead + part
                if len(lead) > MAX_LEADING_SPACE:
                    raise DataError(
                        f"{where}: a document begins with over {MAX_LEADING_SPACE:,} characters of "
                        "white space. It is no text."
                    )
            if ends:
                follows_marker = ends_at_marker
