"""What text looks like that was read, saved or converted in the wrong encoding.

Mojibake is UTF-8 that was once read as Windows-1252 or Latin-1: each character beyond ASCII has become
two to four, such as "â€™" for an apostrophe or "Ã©" for "é". It is recognised by what it is: characters
whose bytes in Windows-1252 are UTF-8. Some such sequences could be meant ("É»" ends a French quotation
in capitals): they count where several stand side by side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from gptcli.data.documents import Place
from gptcli.data.ledger import Reading
from gptcli.inspection.findings import Finding, Level

# So many in a million characters are more than slips.
MANY = 100
SHOWN_CHARACTERS = 16
"""Of the text on either side."""

# What bytes 0x80 to 0x9f are in Windows-1252; Latin-1 has control characters there.
_WINDOWS = {
    byte: char for byte in range(0x80, 0xA0) if (char := bytes([byte]).decode("cp1252", "ignore"))
}
_BYTES = {char: byte for byte, char in _WINDOWS.items()}


def _as_read(first: int, last: int) -> str:
    """Return the characters that these bytes are read as, for the [] of a regular expression."""
    chars = [chr(byte) for byte in range(first, last + 1)]
    chars += [_WINDOWS[byte] for byte in range(first, last + 1) if byte in _WINDOWS]
    return "".join(map(re.escape, chars))


# Line ends and tabs are text; a form feed once ended pages, and U+0085 lines.
_CONTROLS = r"\x00-\x08\x0b\x0e-\x1f\x7f\ufdd0-\ufdef\ufffe\uffff"
_KIND_OF_CHARACTER = {"\ufffd": "replacement", "\ufeff": "byte_order_mark"}
_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


@cache
def _trouble() -> re.Pattern[str]:
    rest = f"[{_as_read(0x80, 0xBF)}]"
    mojibake = (
        # Accents and signs (C2, C3), quotes and dashes (E2 80), a byte-order mark, emoji: one is enough.
        rf"(?:[ÂÃ]{rest}|â[{_as_read(0x80, 0x84)}]{rest}|ï»¿|ð[{_as_read(0x90, 0x9F)}]{rest}{rest}"
        # Central European and Turkish letters: not where the second could be a quotation mark.
        rf"|[ÄÅ]{rest}(?=\w))+"
        rf"|(?:[{_as_read(0xC4, 0xDF)}]{rest}){{3,}}"  # Other alphabets, by words.
        rf"|(?:[{_as_read(0xE0, 0xEF)}]{rest}{rest}){{2,}}"  # Indian and East Asian scripts.
    )
    return re.compile(
        rf"(?P<mojibake>{mojibake})|(?P<windows>[\x80-\x84\x86-\x9f])|[\ufffd\ufeff{_CONTROLS}]"
    )


KINDS = ("mojibake", "windows", "replacement", "byte_order_mark", "control")


@dataclass(frozen=True)
class Trouble:
    """One kind of trouble, as often as it was found."""

    count: int
    texts: int
    """Documents or fields that have it, or pieces of long ones."""
    where: str
    """The first of it."""
    example: str
    """That, with some text around it."""


class EncodingTrouble:
    """What is looked for in text that passes by."""

    def __init__(self) -> None:
        self.characters = 0
        self._counts: Counter[str] = Counter()
        self._texts: Counter[str] = Counter()
        self._first: dict[str, tuple[str, str]] = {}

    def look_in(self, text: str, place: Place) -> None:
        """Look for trouble in text that begins at `place`."""
        self.characters += len(text)
        if text.isascii() and not _ASCII_CONTROL.search(text):
            return
        kinds = set()
        for match in _trouble().finditer(text):
            kind = match.lastgroup or _KIND_OF_CHARACTER.get(match[0], "control")
            if kind == "mojibake" and mended(match[0]) is None:
                continue
            self._counts[kind] += 1
            kinds.add(kind)
            if kind not in self._first:
                self._first[kind] = place.of(text, match.start()), _around(text, match)
        self._texts.update(kinds)

    def of_kind(self, kind: str) -> Trouble | None:
        """Return what was found of one of KINDS; None if nothing was. A run of mojibake counts once."""
        if kind not in self._first:
            return None
        return Trouble(self._counts[kind], self._texts[kind], *self._first[kind])

    def as_dict(self) -> dict[str, Any]:
        found = ((kind, self.of_kind(kind)) for kind in KINDS)
        return {kind: None if trouble is None else vars(trouble) for kind, trouble in found}

    def findings(self, reading: Reading, encoding: str) -> Iterator[Finding]:
        """Yield what is to be said of the encoding, at least one finding.

        reading: what was counted while the same text was read.
        """
        troubled = False
        lost = reading.undecodable_bytes_replaced
        replacement = self.of_kind("replacement")
        if lost:
            troubled = True
            yield Finding(
                "problem",
                "encoding",
                f"bytes that are not {encoding.upper()} were read as U+FFFD, {_times(lost)}",
                None if replacement is None else replacement.where,
                "Set data.encoding to what the files are in (latin-1, cp1252, shift_jis, gb18030, ...).",
            )
        elif replacement is not None and not reading.lone_surrogates_replaced:
            troubled = True
            yield Finding(
                self._level(replacement.count),
                "encoding",
                f"U+FFFD stands {_times(replacement.count)} in the text, for characters that an earlier "
                f"conversion has lost: {replacement.example}",
                replacement.where,
                "Get the text anew from where it was still whole.",
            )
        if reading.lone_surrogates_replaced:
            troubled = True
            yield Finding(
                "problem",
                "encoding",
                "halves of surrogate pairs were read as U+FFFD, "
                f"{_times(reading.lone_surrogates_replaced)}",
                None if replacement is None else replacement.where,
                "Whatever wrote the JSON has cut characters apart: write it anew.",
            )
        mojibake = self.of_kind("mojibake")
        if mojibake is not None:
            troubled = True
            yield Finding(
                self._level(mojibake.count),
                "encoding",
                f"UTF-8 was once read as Windows-1252 or Latin-1, {_times(mojibake.count)}: "
                f"{mojibake.example}",
                mojibake.where,
                "Read the original as UTF-8, or mend the text (the package ftfy does).",
            )
        for kind, what, advice in (
            (
                "windows",
                "quotation marks, dashes or the like of Windows-1252 that were read as Latin-1",
                "Read the original as cp1252, or mend the text (the package ftfy does).",
            ),
            ("control", "control characters", "Take them out: no text needs them."),
            (
                "byte_order_mark",
                "byte-order marks inside the text",
                "They come from files that were joined: take them out.",
            ),
        ):
            trouble = self.of_kind(kind)
            if trouble is not None:
                troubled = True
                yield Finding(
                    self._level(trouble.count),
                    "encoding",
                    f"{what}, {_times(trouble.count)}: {trouble.example}",
                    trouble.where,
                    advice,
                )
        if not troubled:
            yield Finding(
                "ok",
                "encoding",
                "nothing undecodable, no mojibake, no control characters in "
                f"{self.characters:,} characters",
            )

    def _level(self, count: int) -> Level:
        return "problem" if count * 1_000_000 > MANY * self.characters else "warning"


def mended(text: str) -> str | None:
    """Return what was written before its UTF-8 was read as Windows-1252 or Latin-1; None if it is no
    such text."""
    try:
        return bytes(_BYTES.get(char, ord(char)) for char in text).decode()
    except ValueError:
        return None


def _around(text: str, match: re.Match[str]) -> str:
    """Return the match with some text on either side, in one line, and what it was before."""
    start, end = match.span()
    found = match[0][:SHOWN_CHARACTERS]
    around = _printable(
        f"{text[max(0, start - SHOWN_CHARACTERS) : start]}{found}{text[end : end + SHOWN_CHARACTERS]}"
    )
    right = mended(found) if match.lastgroup == "mojibake" else None
    if match.lastgroup == "windows":
        right = bytes([ord(found)]).decode("cp1252", "ignore")
    return f'"{around}"' + (f' has "{_printable(found)}" for "{_printable(right)}"' if right else "")


def _printable(text: str) -> str:
    line = " ".join(text.split(" ")).replace("\n", " ")
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in line)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
