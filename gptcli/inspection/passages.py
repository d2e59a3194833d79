"""Passages: the parts of running text that are compared with each other.

A document is cut at its blank lines. One without any, such as a line or a row, is a passage itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gptcli.data.documents import Place, PlacedPiece

MAX_CHARACTERS = 100_000
"""Text without blank lines is cut here, so that memory is bounded."""
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


class Passages:
    """Makes passages of the pieces of documents that pass by, one after the other."""

    def __init__(self) -> None:
        self._held = ""
        self._place: Place | None = None

    def of(self, piece: PlacedPiece) -> Iterator[tuple[str, Place]]:
        """Yield the passages that end in a piece: (text, where it begins)."""
        place = piece.place if self._place is None else self._place
        text = self._held + piece.text
        begin = 0
        for match in _BLANK_LINE.finditer(text):
            yield text[begin : match.start()], place
            place = place.after(text[begin : match.end()])
            begin = match.end()
        while len(text) - begin > MAX_CHARACTERS:
            yield text[begin : begin + MAX_CHARACTERS], place
            place = place.after(text[begin : begin + MAX_CHARACTERS])
            begin += MAX_CHARACTERS
        self._held, self._place = text[begin:], place
        if piece.ends_document:
            yield self._held, place
            self._held, self._place = "", None
