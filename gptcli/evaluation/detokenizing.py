"""Text as people write it, from corpora that were split into words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gptcli.data.documents import Piece

# WikiText (Merity et al. 2016, https://arxiv.org/abs/1609.07843): words, punctuation and the parts of
# contractions stand apart, and @-@ @,@ @.@ is what joined two numbers or words.
_WIKITEXT = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r" ([:;.,!?])(?= |$)", r"\1"),
        (r"\( ([^()]*?) \)", r"(\1)"),
        (r"\[ ([^\[\]]*?) \]", r"[\1]"),
        (r"\{ ([^{}]*?) \}", r"{\1}"),
        (r'" ([^"]*?) "', r'"\1"'),
        (r"(?<= )' ([^']*?) '(?= )", r"'\1'"),
        (r"(?<=s) ' (?=\w)", "' "),
        (r" '(s|t|re|ve|ll|d|m)\b", r"'\1"),
        (r" n't\b", "n't"),
        (r"(?<=\d) ([\u2013/]) (?=\d)", r"\1"),
        (r"(?<=[$\u00a3\u20ac#]) (?=\d)", ""),
        (r" %", "%"),
        (r" \u00b0 ", "\u00b0"),
    )
]


def detokenized_wikitext(line: str) -> str:
    """Return a line of WikiText as it was written, as far as that can be told; headings stay."""
    for pattern, replacement in _WIKITEXT:
        line = pattern.sub(replacement, line)
    return line


def detokenized(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the documents of WikiText as they were written."""
    rest = ""  # Of a line that goes on in the next piece.
    for text, ends_document in pieces:
        text, rest = rest + text, ""
        if not ends_document:
            text, line_feed, rest = text.rpartition("\n")
            text += line_feed
        lines = (detokenized_wikitext(line) for line in text.split("\n"))
        yield Piece("\n".join(lines), ends_document)
