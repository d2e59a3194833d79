"""The held-out part: whether it is enough to say anything, and whether it was trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gptcli.evaluation.overlap import GRAM_WORDS, NEAR_DUPLICATE_OVERLAP, Leaks
from gptcli.inspection.findings import Finding, share

FEW_EXAMPLES = 100
FEW_TOKENS = 5_000
LITTLE_KNOWN, MUCH_KNOWN = 0.001, 0.01
"""Shares of the held-out text: up to the first it is phrases of everyday, and from the second on what is
known from the training text moves scores."""


def size_findings(examples: int | None, tokens: int) -> Iterator[Finding]:
    """Yield whether the held-out part is enough. examples: None for running text."""
    advice = "Hold out more: data.validation_fraction, or data.validation_source."
    if not tokens:
        yield Finding(
            "warning", "held-out", "nothing is held out: no score will say what is learnt", None, advice
        )
    elif examples is None:
        level = "ok" if tokens >= FEW_TOKENS else "warning"
        message = f"{tokens:,} tokens are held out"
        yield Finding(level, "held-out", message, advice=None if level == "ok" else advice)  # type: ignore[arg-type]
    else:
        # Twice the standard error of a share of one half, the least sure one.
        points = 100 / math.sqrt(examples)
        message = f"{examples:,} examples are held out: a share of them is known to {points:.1f} points"
        if examples >= FEW_EXAMPLES:
            yield Finding("ok", "held-out", message)
        else:
            yield Finding("warning", "held-out", message, advice=advice)


@dataclass(frozen=True)
class Overlap:
    """What of the held-out part stands in the training text."""

    items: int
    """That were looked for."""
    too_short: int
    """Those of fewer words than tell anything."""
    known: int
    """Those of which half or more of the runs of words are there."""
    characters: int
    known_characters: int
    equal: int
    """Held-out items whose input is trained on, letter for letter."""
    where: str | None
    """One that is known as well as any."""

    @classmethod
    def of(cls, leaks: Leaks, texts: Mapping[str, str], equal: int) -> Overlap:
        """texts: {text: its place}, in the order in which they were looked for."""
        characters = np.array([len(text) for text in texts], np.int64)
        is_known = leaks.overlap >= NEAR_DUPLICATE_OVERLAP
        where = list(texts.values())[leaks.worst[0]] if is_known.any() else None
        return cls(
            leaks.items,
            leaks.too_short,
            leaks.near_duplicates,
            int(characters.sum()),
            int(characters[is_known].sum()),
            equal,
            where,
        )


def overlap_findings(overlap: Overlap, unit: str) -> Iterator[Finding]:
    """Yield what is to be said of that. unit: what the items are called."""
    known, told = overlap.known, overlap.items - overlap.too_short
    part = share(overlap.known_characters, overlap.characters)
    message = (
        f"{known:,} of {told:,} held-out {unit}, {part} of their text, stand in the training text (half "
        f"or more of their runs of {GRAM_WORDS} words)"
    )
    if overlap.equal:
        message += f"; {overlap.equal:,} examples are there letter for letter"
    if not overlap.equal and overlap.known_characters <= LITTLE_KNOWN * overlap.characters:
        yield Finding("ok", "overlap", message)
        return
    is_much = overlap.known_characters > MUCH_KNOWN * overlap.characters
    yield Finding(
        "problem" if overlap.equal or is_much else "warning",
        "overlap",
        message,
        overlap.where,
        "Scores are too good by what was learnt by heart: take it out of one of the two.",
    )
