"""Running text becomes passages, however its pieces are cut."""

from __future__ import annotations

import pytest

from gptcli.data.documents import Place, PlacedPiece
from gptcli.inspection import passages
from gptcli.inspection.passages import Passages

TEXT = "one\ntwo\n\nthree\n \t\nfour\n\n\nfive"


def passages_of(*texts: str) -> list[tuple[str, str]]:
    """Return the passages of a document in these pieces, and where their first word is."""
    place = Place("a.txt", 1)
    reader = Passages()
    found = []
    for number, text in enumerate(texts, 1):
        piece = PlacedPiece(text, number == len(texts), place)
        for passage, begin in reader.of(piece):
            found.append((passage.strip(), begin.of(passage, len(passage) - len(passage.lstrip()))))
        place = place.after(text)
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_document_is_cut_at_blank_lines(size: int) -> None:
    pieces = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
    assert passages_of(*pieces) == [
        ("one\ntwo", "a.txt:1"),
        ("three", "a.txt:4"),
        ("four", "a.txt:6"),
        ("five", "a.txt:9"),
    ]


def test_documents_do_not_share_a_passage() -> None:
    reader = Passages()
    pieces = [PlacedPiece("one", True, Place("a.txt", 1)), PlacedPiece("two", True, Place("b.txt", 1))]
    found = [(text, place.of(text, 0)) for piece in pieces for text, place in reader.of(piece)]
    assert found == [("one", "a.txt:1"), ("two", "b.txt:1")]


def test_text_without_blank_lines_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "MAX_CHARACTERS", 4)
    assert passages_of("abcd\nefghij") == [("abcd", "a.txt:1"), ("efg", "a.txt:2"), ("hij", "a.txt:2")]
