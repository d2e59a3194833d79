"""Sequences of any lengths through a model, in batches with a budget of tokens and next to no padding.

1. Items are read ahead and tokenized in a thread, as many as make a pool: some batches of tokens.
2. A pool's sequences are sorted by length, and batches made of neighbours: rows times the longest of
   them, padding included, is within the budget. Padding is on the right, where causal attention never
   looks, so that there is no mask.
3. What the model says of them comes back in the order of the items, a pool at a time.

Memory depends on the budget, and not on how many items there are: at any time, one pool is in work and
one is read ahead. The first pools are small, so that the first results come soon; and where a live input
makes a pause, a pool ends, so that no result waits for more to be typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np

from gptcli.data.read_ahead import one_ahead

# Of a batch on a CPU. More of them need more padding, and more of the caches; a GPU wants them all the
# same.
BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_GPU = 32_768
# What a batch costs by itself, to read the weights and to start kernels, in tokens that take as long.
BATCH_COST = {"cpu": 128}
BATCH_COST_GPU = 1024
# What the first batch of a size costs, in the same way: for each number of tokens that a layer gets
# together, oneDNN writes new machine code.
SIZE_COST = {"cpu": 256}
SIZE_COST_GPU = 0
# Batches of a pool: each has four times as many as the one before.
FIRST_POOL, POOL_GROWTH, LARGEST_POOL = 4, 4, 32
# Of a pool too: blank texts have no tokens, and of long ones not all is tokens that are read.
POOL_ITEMS, POOL_CHARACTERS = 4096, 2**24
# Tokenized together.
PART_ITEMS, PART_CHARACTERS = 32, 2**20


class TokenSequence(Protocol):
    """What goes through the model as one row."""

    @property
    def input_ids(self) -> Sequence[int]:
        """At least one."""


T = TypeVar("T")
S = TypeVar("S", bound=TokenSequence)
R = TypeVar("R")


@dataclass(frozen=True)
class TokenBatch(Generic[S]):
    """Sequences of like length."""

    sequences: list[S]
    input_ids: np.ndarray
    """(sequences, tokens), int64, padded on the right with token 0."""
    lengths: np.ndarray
    """(sequences,), int64: the tokens of each that are not padding."""


@dataclass(frozen=True)
class TokenBudget:
    """How many tokens make a batch."""

    tokens: int
    """Padding included; a sequence that is longer makes a batch alone."""
    context_length: int
    """No sequence is longer, nor are batches wider."""
    beside: int = 0
    """Tokens that each sequence takes with it through the model."""
    batch_cost: int = BATCH_COST["cpu"]
    """Tokens of padding that are cheaper than one more batch."""
    size_cost: int = SIZE_COST["cpu"]
    """Tokens of padding that are cheaper than a batch of a number of tokens that there has not been."""
    _sizes: set[int] = field(default_factory=set)
    """Tokens of the batches that there have been."""

    @classmethod
    def of_device(cls, device: str, context_length: int, beside: int = 0) -> TokenBudget:
        """Return what suits a kind of device, such as "cpu" or "cuda"."""
        tokens = BATCH_TOKENS.get(device, BATCH_TOKENS_GPU)
        costs = BATCH_COST.get(device, BATCH_COST_GPU), SIZE_COST.get(device, SIZE_COST_GPU)
        return cls(tokens, context_length, beside, *costs)

    def batches(self, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (numbers of its sequences, tokens to pad them to) of each batch.

        lengths: (sequences,). The longest come first, to see at once if they fit. Of all ways to part
        the sorted sequences, it is the one that costs least, as `batch_cost` and `size_cost` count.
        """
        order = np.argsort(-lengths, kind="stable")
        padded = np.minimum(_rounded_up(lengths[order]), self.context_length)
        widths = (padded + self.beside).tolist()
        costs_of = {width: self._costs(width) for width in set(widths)}
        # Of each sequence and all behind it: what they cost, and how many of them make the first batch.
        costs, begin_with = np.zeros(len(order) + 1), np.zeros(len(order), dtype=np.int64)
        for first in reversed(range(len(order))):
            some = costs_of[widths[first]][: len(order) - first]
            some = some + costs[first + 1 : first + 1 + len(some)]
            best = int(some.argmin())
            costs[first], begin_with[first] = some[best], best + 1
        first = 0
        while first < len(order):
            end = first + int(begin_with[first])
            self._sizes.add((end - first) * widths[first])
            yield order[first:end], int(padded[first])
            first = end

    def _costs(self, width: int) -> np.ndarray:
        """Return what batches of 1 sequence, 2, ... of so many tokens each cost, up to the largest."""
        sizes = width * np.arange(1, max(1, self.tokens // width) + 1)
        is_new = ~np.isin(sizes, list(self._sizes))
        costs: np.ndarray = sizes + self.batch_cost + self.size_cost * is_new
        return costs

    def token_batches(self, sequences: Sequence[S]) -> Iterator[tuple[np.ndarray, TokenBatch[S]]]:
        """Yield (numbers of its sequences, batch), as `batches` does."""
        lengths = np.array([len(sequence.input_ids) for sequence in sequences], dtype=np.int64)
        for numbers, width in self.batches(lengths):
            input_ids = np.zeros((len(numbers), width), dtype=np.int64)
            for row, number in enumerate(numbers):
                input_ids[row, : lengths[number]] = sequences[number].input_ids
            some = [sequences[number] for number in numbers]
            yield numbers, TokenBatch(some, input_ids, lengths[numbers])


def score_in_order(
    items: Iterable[T],
    tokenize: Callable[[list[T]], Sequence[Sequence[S]]],
    score: Callable[[TokenBatch[S]], Sequence[R]],
    budget: TokenBudget,
    *,
    characters: Callable[[T], int],
    is_live: bool = False,
) -> Iterator[list[tuple[T, list[R]]]]:
    """Yield all items, in order, with the results of their sequences, some at a time.

    tokenize: returns the sequences of each item, any number; called in a thread. score: returns the
    result of each sequence of a batch. characters: of an item, to bound memory. is_live: items may let
    one wait. An error while reading comes after the results of the items before.
    """
    pools = partial(_pools, tokenize=tokenize, characters=characters, budget=budget)
    for pool in one_ahead(items, pools, is_live=is_live):
        sequences = [sequence for _, some in pool for sequence in some]
        results: dict[int, R] = {}
        for numbers, batch in budget.token_batches(sequences):
            results.update(zip(numbers.tolist(), score(batch), strict=True))
        found = (results[number] for number in range(len(sequences)))
        yield [(item, [next(found) for _ in some]) for item, some in pool]


def _pools(
    items: Iterator[T | None],
    tokenize: Callable[[list[T]], Sequence[Sequence[S]]],
    characters: Callable[[T], int],
    budget: TokenBudget,
) -> Iterator[list[tuple[T, Sequence[S]]]]:
    """Yield the items with their sequences; None among the items ends a pool."""
    pool: list[tuple[T, Sequence[S]]] = []
    batches, tokens, read = FIRST_POOL, 0, 0
    problem = None
    try:
        for part, is_pause in _parts(items, characters):
            made = tokenize(part)
            pool += zip(part, made, strict=True)
            read += sum(map(characters, part))
            tokens += sum(len(row.input_ids) + budget.beside for rows in made for row in rows)
            is_full = (
                tokens >= batches * budget.tokens or len(pool) >= POOL_ITEMS or read >= POOL_CHARACTERS
            )
            if pool and (is_full or is_pause):
                yield pool
                pool, tokens, read = [], 0, 0
                batches = min(POOL_GROWTH * batches, LARGEST_POOL)
    except Exception as error:
        problem = error
    if pool:
        yield pool
    if problem is not None:
        raise problem


def _parts(items: Iterator[T | None], characters: Callable[[T], int]) -> Iterator[tuple[list[T], bool]]:
    """Yield items to tokenize together, and whether a pause follows them."""
    part: list[T] = []
    read = 0
    problem = None
    try:
        for item in items:
            if item is not None:
                part.append(item)
                read += characters(item)
            if item is None or len(part) == PART_ITEMS or read >= PART_CHARACTERS:
                yield part, item is None
                part, read = [], 0
    except Exception as error:
        problem = error
    yield part, False
    if problem is not None:
        raise problem


def _rounded_up(lengths: np.ndarray) -> np.ndarray:
    """Return for each the next length with 5 significant bits.

    Memory would grow with the number of different shapes that the model meets: oneDNN, which multiplies
    bfloat16 on CPUs, keeps something for each.
    """
    _, bits = np.frexp(lengths)  # As many as the number has.
    steps = 1 << np.maximum(bits - 5, 0)
    rounded: np.ndarray = -(-lengths // steps) * steps
    return rounded
