"""The scripts that text is written in, such as Latin or Cyrillic: shares of its letters.

A letter's script is told by its Unicode name ("CYRILLIC SMALL LETTER A"): `unicodedata` has no other
place for it. Chinese characters are Han, in Japanese text too, and kana are Hiragana and Katakana.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from typing import Any

import numpy as np

# Names of several words that other scripts' names begin with, too.
_OF_TWO_WORDS = ("OLD", "NEW", "TAI", "LINEAR", "CANADIAN", "PAU", "OL")
_RENAMED = {"CJK": "Han", "IDEOGRAPHIC": "Han", "VEDIC": "Devanagari", "FEMININE": "Latin"} | {
    "MASCULINE": "Latin",
    "NKO": "N'Ko",
}
# Letters by category, but signs that every script uses, or letters of no script's own.
_OF_NO_SCRIPT = frozenset(
    [
        *("MODIFIER", "MATHEMATICAL", "MICRO", "OHM", "KELVIN", "ANGSTROM", "SCRIPT", "DOUBLE-STRUCK"),
        *("BLACK-LETTER", "SUPERSCRIPT", "PLANCK", "TURNED", "VERTICAL", "CARON", "EULER", "ALEF"),
        *("BET", "GIMEL", "DALET", "INFORMATION", "ROMAN", "MASU"),
    ]
)
# Characters that are counted together: counting costs as much for one as for a million.
_AT_ONCE = 2**20


@cache
def script_of(letter: str) -> str | None:
    """Return the script of a character; None if it is no letter, or of no script's own."""
    if unicodedata.category(letter)[0] != "L":
        return None
    words = unicodedata.name(letter, "").split()
    if words and words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    if not words or words[0] in _OF_NO_SCRIPT:
        return None
    first = words[0].split("-")[0]
    if first in _RENAMED:
        return _RENAMED[first]
    return " ".join(words[:2] if first in _OF_TWO_WORDS else [first]).title()


class Scripts:
    """Counts the letters of text that passes by."""

    def __init__(self) -> None:
        self._counts = np.zeros(0x110000, np.int64)
        self._held: list[str] = []
        self._held_characters = 0

    def look_in(self, text: str) -> None:
        self._held.append(text)
        self._held_characters += len(text)
        if self._held_characters >= _AT_ONCE:
            self._count()

    def _count(self) -> None:
        code_points = np.frombuffer("".join(self._held).encode("utf-32-le"), np.uint32)
        counts = np.bincount(code_points)
        self._counts[: len(counts)] += counts
        self._held, self._held_characters = [], 0

    def letters(self) -> dict[str, int]:
        """Return {script: letters}, the most frequent first."""
        self._count()
        found: Counter[str] = Counter()
        for code_point in np.flatnonzero(self._counts).tolist():
            script = script_of(chr(code_point))
            if script is not None:
                found[script] += int(self._counts[code_point])
        return dict(found.most_common())

    def as_dict(self) -> dict[str, Any]:
        """Return {script: share of all letters}."""
        letters = self.letters()
        total = sum(letters.values())
        return {script: count / total for script, count in letters.items()}
