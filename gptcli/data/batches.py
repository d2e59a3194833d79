"""The batch for step n: a pure function of (seed, n), so a resumed run has nothing to rewind.

An epoch cuts the token stream, taken as a circle, into sequences of `context_length` from an offset of
its own; every token is the target of exactly one of them. Their order is a pseudo-random permutation
that is computed, not stored: any position costs the same, whatever the size of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptcli.data.token_store import TokenStore

IGNORED = -100
"""Target of a position that is padding, as in torch.nn.functional.cross_entropy."""

_WORD = 2**64


@dataclass(frozen=True)
class Batch:
    """Sequences and what is to be learnt from them; the shorter ones are padded on the right."""

    input_ids: np.ndarray
    """(sequences, tokens), int64."""
    lengths: np.ndarray
    """(sequences,), int64: the tokens of each that are not padding."""
    targets: np.ndarray
    """A row a sequence. Token by token, (sequences, tokens), int64: the token after each input, or
    IGNORED where there is nothing to learn; else what the task makes of it."""
    is_token_by_token: bool = True

    @property
    def token_count(self) -> int:
        """Tokens that are not padding."""
        return int(self.lengths.sum())

    def split(self, size: int) -> Iterator[Batch]:
        """Yield micro-batches of at most `size` sequences, no wider than they need to be."""
        for start in range(0, len(self.input_ids), size):
            part = slice(start, start + size)
            width = int(self.lengths[part].max())
            targets = self.targets[part]
            if self.is_token_by_token:
                targets = targets[:, :width]
            yield Batch(
                self.input_ids[part, :width], self.lengths[part], targets, self.is_token_by_token
            )


def target_tokens(batch: Batch) -> int:
    """Return how many tokens of a token-by-token batch are to be learnt."""
    return int((batch.targets != IGNORED).sum())


class TrainingBatches:
    """Batches of `batch_size` sequences, without end; epochs follow each other without a gap."""

    def __init__(
        self,
        store: TokenStore,
        *,
        context_length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """rank, processes: this process takes every `processes`-th sequence of each batch."""
        self._store = store
        self._context_length = context_length
        self._batch_size = batch_size
        self._seed = seed
        self._mine = slice(rank, None, processes)
        self.sequences_per_epoch = -(-store.token_count // context_length)

    def batch(self, step: int) -> Batch:
        """Return the batch of optimizer step `step`, which counts from 0."""
        first = step * self._batch_size
        numbers = range(first, first + self._batch_size)[self._mine]
        return _stack([self._span(number) for number in numbers], self._store, self._context_length)

    def describe(self, step: int) -> str:
        """Return which sequences, of which epoch, the batch of step `step` has."""
        first = step * self._batch_size
        epoch, position = divmod(first, self.sequences_per_epoch)
        last_epoch, last = divmod(first + self._batch_size - 1, self.sequences_per_epoch)
        in_epoch = f" of epoch {epoch + 1}" if epoch != last_epoch else ""
        return f"sequences {position + 1:,}{in_epoch} to {last + 1:,} of epoch {last_epoch + 1}"

    def _span(self, number: int) -> tuple[int, int]:
        """Return (first target, length) of the `number`-th sequence of the run."""
        epoch, position = divmod(number, self.sequences_per_epoch)
        window = permuted(position, self.sequences_per_epoch, mix(self._seed, epoch))
        offset = mix(self._seed, epoch, 1) % self._store.token_count
        begin = window * self._context_length
        length = min(self._context_length, self._store.token_count - begin)
        return (offset + begin) % self._store.token_count, length


def evaluation_batches(
    store: TokenStore, *, context_length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[Batch]:
    """Yield the stream in order, each of its first `max_tokens` tokens as a target exactly once."""
    count = min(store.token_count, max_tokens or store.token_count)
    begins = range(0, count, context_length)
    for first in range(0, len(begins), batch_size):
        spans = [
            (begin, min(context_length, count - begin)) for begin in begins[first : first + batch_size]
        ]
        yield _stack(spans, store, context_length)


def _stack(spans: list[tuple[int, int]], store: TokenStore, context_length: int) -> Batch:
    width = min(context_length, max(length for _, length in spans))
    input_ids = np.full((len(spans), width), store.end_of_text_id, dtype=np.int64)
    targets = np.full((len(spans), width), IGNORED, dtype=np.int64)
    for row, (begin, length) in enumerate(spans):
        tokens = store.read_circular(begin - 1, length + 1)
        input_ids[row, :length] = tokens[:-1]
        targets[row, :length] = tokens[1:]
    return Batch(input_ids, np.array([length for _, length in spans]), targets)


def mix(*words: int) -> int:
    """Return a 64-bit hash of integers (splitmix64, Steele et al. 2014), for seeds of their own."""
    state = 0
    for word in words:
        state = (state ^ (word % _WORD)) + 0x9E3779B97F4A7C15
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % _WORD
        state ^= state >> 31
    return state


def permuted(position: int, count: int, key: int) -> int:
    """Return where a pseudo-random permutation of range(count), chosen by `key`, sends `position`.

    A four-round Feistel network on the next even number of bits, walked until it lands inside the
    range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): about four tries at most.
    """
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = position >> half_bits, position & mask
        for round_number in range(4):
            left, right = right, left ^ (mix(key, round_number, right) & mask)
        position = left << half_bits | right
        if position < count:
            return position
