"""From sources to documents.

`read_documents` streams the text as pieces of half a million to a million characters at most. A piece
ends where cutting cannot change how GPT-2 tokenizes it; the last piece of a document says so.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gptcli.config.schema import DataSettings
from gptcli.data.builtin_text import PYTHON_DOCS, python_docs
from gptcli.data.ledger import Reading
from gptcli.data.rows import (
    READ_BYTES,
    decoded_chunks,
    lines_of,
    read_rows,
    reading_file,
    whole_characters,
)
from gptcli.data.sources import TEXT_SUFFIXES, BuiltinSource, FileSource, Source
from gptcli.errors import DataError

END_OF_TEXT = "<|endoftext|>"
# A small file can unpack to any size. Text is streamed, but this much white space must fit in memory:
MAX_LEADING_SPACE = 2**24


class Piece(NamedTuple):
    """A part of a document's text, and whether the document ends with it."""

    text: str
    ends_document: bool


class Place(NamedTuple):
    """Where a text begins."""

    source: str
    """A file, or a row of one."""
    line: int | None = None
    """Of the file, counted from 1; None for a row, whose place says all."""

    def of(self, text: str, offset: int) -> str:
        """Return where the character at `offset` is, in the text that begins here."""
        if self.line is None:
            return self.source
        return f"{self.source}:{self.line + text.count(chr(10), 0, offset)}"

    def after(self, text: str) -> Place:
        """Return where the text begins that follows `text`, which begins here."""
        return self if self.line is None else Place(self.source, self.line + text.count("\n"))


class PlacedPiece(NamedTuple):
    """A piece, and where it begins."""

    text: str
    ends_document: bool
    place: Place


def read_documents(sources: Iterable[Source], data: DataSettings, reading: Reading) -> Iterator[Piece]:
    """Yield the text of all documents of `sources`, in order, in pieces.

    Documents that are only white space are dropped, CRLF becomes LF, a byte-order mark is removed, and
    all of it is counted in `reading`.
    Raises DataError naming the file, and the byte or row, that cannot be read.
    """
    for text, ends_document, _ in read_placed(sources, data, reading):
        yield Piece(text, ends_document)


def text_bytes(sources: Iterable[Source], data: DataSettings) -> int | None:
    """Return about how many bytes of text the documents have; None if only reading them tells."""
    if codecs.lookup(data.encoding).name != "utf-8":
        return None
    total = 0
    for source in sources:
        if not isinstance(source, FileSource) or source.path.suffix.lower() not in TEXT_SUFFIXES:
            return None
        total += source.hashed_bytes
    return total


def read_placed(
    sources: Iterable[Source], data: DataSettings, reading: Reading
) -> Iterator[PlacedPiece]:
    """Yield the same as `read_documents`, with the places."""
    for source in sources:
        for piece in _split_at_markers(_raw_pieces(source, data, reading), reading, str(source)):
            reading.bytes += len(piece.text.encode())
            reading.documents += piece.ends_document
            yield piece


def _raw_pieces(source: Source, data: DataSettings, reading: Reading) -> Iterator[PlacedPiece]:
    if isinstance(source, BuiltinSource) and source.name == PYTHON_DOCS:
        for number, document in enumerate(python_docs(), 1):
            yield PlacedPiece(document, True, Place(f"{source}: document {number}"))
    elif isinstance(source, FileSource) and source.suffix in TEXT_SUFFIXES:
        reading.files += 1
        with reading_file(source):
            yield from _pieces_of_text_file(source, data, reading)
    else:
        column = data.columns.text
        for row in read_rows(source, data, reading, {"text": column}):
            pieces = _pieces_of_row(row.values[column], row.where, data, reading)
            yield from _placed(pieces, Place(row.where))


def _pieces_of_text_file(
    source: FileSource, data: DataSettings, reading: Reading
) -> Iterator[PlacedPiece]:
    chunks = decoded_chunks(source, data, reading)
    if data.text_unit == "file":
        yield from _placed(pieces_of_text(chunks), Place(str(source), 1))
        return
    for number, line in enumerate(lines_of(chunks, str(source)), 1):
        reading.carriage_returns_removed += line.endswith("\r\n")
        end = "\r\n" if line.endswith("\r\n") else "\n"
        pieces = pieces_of_text(_slices(line.removesuffix(end)))
        yield from _placed(pieces, Place(str(source), number))


def _placed(pieces: Iterable[Piece], place: Place) -> Iterator[PlacedPiece]:
    """Yield pieces that follow each other, the first of which begins at `place`."""
    for text, ends_document in pieces:
        yield PlacedPiece(text, ends_document, place)
        place = place.after(text)


# A cut before white space that follows text is exact: in GPT-2's splitting pattern no match crosses it
# and nothing looks back over it. "\r\n" and <|endoftext|> are never cut apart there either.
_LAST_WHITE_SPACE = re.compile(r".*\S(?=[ \n\r\t])", re.DOTALL)
# The same is true before punctuation that follows a letter or digit, for scripts without spaces.
_LAST_PUNCTUATION = re.compile(
    r".*(?:[^\W_](?=[.,;:!?<\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff01\uff1f])|.(?=<\|endoftext\|>))",
    re.DOTALL,
)


def pieces_of_text(chunks: Iterable[str]) -> Iterator[Piece]:
    """Yield one document, given in chunks of any size, as pieces; cuts do not change the tokens."""
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
        yield from pieces_of_text(_slices(whole_characters(value, where, data, reading)))
    else:
        raise DataError(f"{where}: the text is {type(value).__name__} {value!r:.60}, not a string.")


def _split_at_markers(
    pieces: Iterable[PlacedPiece], reading: Reading, where: str
) -> Iterator[PlacedPiece]:
    """End a document at each literal <|endoftext|>; drop documents that are only white space."""
    is_open = False  # Whether a piece of the current document has been yielded.
    lead = ""  # White space that the current document began with.
    lead_place = Place(where)
    follows_marker = False
    for text, ends_document, place in pieces:
        if "\r" in text:
            reading.carriage_returns_removed += text.count("\r\n")
            text = text.replace("\r\n", "\n")
        parts = text.split(END_OF_TEXT)
        reading.end_of_text_markers += len(parts) - 1
        for index, part in enumerate(parts):
            ends_at_marker = index < len(parts) - 1
            ends = ends_document or ends_at_marker
            if is_open or part.strip():
                yield PlacedPiece(lead + part, ends, lead_place if lead else place)
                is_open, lead = not ends, ""
            else:
                # What stands behind a document's last marker is no document unless it has text.
                reading.empty_documents_dropped += ends and (ends_at_marker or not follows_marker)
                lead, lead_place = "" if ends else lead + part, lead_place if lead else place
                if len(lead) > MAX_LEADING_SPACE:
                    raise DataError(
                        f"{where}: a document begins with over {MAX_LEADING_SPACE:,} characters of "
                        "white space. It is no text."
                    )
            place = place.after(part)
            if ends:
                follows_marker = ends_at_marker
