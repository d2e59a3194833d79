"""Training examples as a model gets them, each token as text that is learnt or only read.

They are made of the batches themselves, after cutting and leaving out: what is shown is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gptcli.data.batches import IGNORED, Batch

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Part:
    """A part of an example."""

    text: str
    is_learnt: bool
    """Whether its tokens, or it as a label, are targets; else they are only read."""


@dataclass(frozen=True)
class RenderedExample:
    """One sequence of a batch, without its padding."""

    parts: list[Part]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def shortened(self, characters: int) -> list[Part]:
        """Return the parts, each no longer than that; of a longer one its middle is left out."""
        half = (characters - len(_LEFT_OUT)) // 2
        return [
            part
            if len(part.text) <= characters
            else Part(f"{part.text[:half]}{_LEFT_OUT}{part.text[-half:]}", part.is_learnt)
            for part in self.parts
        ]


_LEFT_OUT = " [...] "


def render_tokens(batch: Batch, row: int, decode: Decode) -> RenderedExample:
    """Return a sequence of which some tokens are learnt, each from those before it."""
    length = int(batch.lengths[row])
    inputs, targets = batch.input_ids[row, :length], batch.targets[row, :length]
    # The first is never predicted, and the last target is no input.
    ids = np.append(inputs, targets[-1])
    is_learnt = np.append(False, targets != IGNORED)
    if targets[-1] == IGNORED:
        ids, is_learnt = ids[:-1], is_learnt[:-1]
    return RenderedExample(list(_parts(ids, is_learnt, decode)))


def render_places(batch: Batch, row: int, decode: Decode) -> RenderedExample:
    """Return a window of which the first and last token of an answer are learnt.

    That there is no answer is learnt as the last token, end-of-text.
    """
    ids = batch.input_ids[row, : batch.lengths[row]]
    first, last = batch.targets[row]
    places = np.arange(len(ids))
    return RenderedExample(list(_parts(ids, (first <= places) & (places <= last), decode)))


def render_labels(
    batch: Batch, row: int, decode: Decode, labels: Sequence[str] | None
) -> RenderedExample:
    """Return a text and its label, labels or number. labels: None for a number."""
    text = decode(batch.input_ids[row, : batch.lengths[row]].tolist())
    target = batch.targets[row]
    if labels is None:
        learnt = f"{float(target):g}"
    elif np.ndim(target):
        learnt = ", ".join(labels[number] for number in np.flatnonzero(target).tolist()) or "no label"
    else:
        learnt = labels[int(target)]
    return RenderedExample([Part(f"{text} -> ", False), Part(learnt, True)])


def _parts(ids: np.ndarray, is_learnt: np.ndarray, decode: Decode) -> Iterator[Part]:
    borders = [0, *(np.flatnonzero(is_learnt[1:] != is_learnt[:-1]) + 1).tolist(), len(ids)]
    for begin, end in pairwise(borders):
        yield Part(decode(ids[begin:end].tolist()), bool(is_learnt[begin]))
