"""Sequences packed so that what they begin with alike goes through the model once.

Four choices behind one question share the question; two sentences that differ in their last word share
the rest. In causal attention a token depends on what stands before it alone, so a shared beginning has
the same hidden states in all of them.

1. Sequences are sorted, so that those that begin alike are neighbours;
2. each is laid behind the last in a row, but for what they begin with alike;
3. a mask lets each token see the tokens of its own sequence only, and its place there is its position.

A row holds many short sequences, so there is next to no padding either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# Tokens of a row, if no sequence is longer: attention's cost grows with the square of it, and of shorter
# rows more of the beginnings would have to be repeated.
ROW_TOKENS = 128


@dataclass
class PackedRow:
    """Some sequences side by side."""

    input_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Of each token, in its own sequence."""
    paths: dict[int, np.ndarray] = field(default_factory=dict)
    """{number of a sequence: (its tokens,) where in the row each of its tokens is}"""
    spans: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    """(first, end) of the tokens that a sequence added, and where those before them are."""

    def mask(self, width: int) -> np.ndarray:
        """Return (width, width) bool: whether the token of a row may look at that of a column."""
        seen = np.eye(width, dtype=bool)  # Padding sees itself: softmax over nothing would be NaN.
        for first, end, before in self.spans:
            seen[first:end, before] = True
            seen[first:end, first:end] = np.tri(end - first, dtype=bool)
        return seen


def pack(sequences: Sequence[list[int]]) -> Iterator[PackedRow]:
    """Yield rows that hold all sequences, of one token or more each."""
    longest = max((len(sequence) for sequence in sequences), default=0)
    width = max(ROW_TOKENS, longest)
    row, path = PackedRow(), np.zeros(0, np.int64)
    last: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda number: sequences[number]):
        sequence = sequences[number]
        shared = _shared_length(sequence, last)
        if len(row.input_ids) + len(sequence) - shared > width:
            yield row
            row, shared = PackedRow(), 0
        first, end = len(row.input_ids), len(row.input_ids) + len(sequence) - shared
        before = path[:shared]
        path = np.concatenate([before, np.arange(first, end)])
        row.input_ids += sequence[shared:]
        row.positions += range(shared, len(sequence))
        row.paths[number] = path
        row.spans.append((first, end, before))
        last = sequence
    if row.paths:
        yield row


def _shared_length(left: list[int], right: list[int]) -> int:
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
