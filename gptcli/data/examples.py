"""Examples: inputs with something to be learnt of each, tokenized and kept in memory.

1. `hold_out` decides which examples are held out; equal inputs always land on the same side;
2. `Examples` keeps one split as flat arrays, and makes batches of any of its examples;
3. `ExampleBatches` gives the batch of step n, a pure function of (seed, n): epochs follow each other
   without a gap, each with every example once, and batches are of examples of like length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptcli.data.batches import IGNORED, Batch, mix, permuted
from gptcli.data.token_budget import TokenBudget

# As many batches are sorted by length together: enough to save nearly all padding, few enough to leave
# the order random.
POOL_BATCHES = 32


@dataclass(frozen=True)
class Example:
    """One input, and what is to be learnt of it."""

    input_ids: list[int]
    """At least one."""
    target: np.ndarray | float | int
    """Token by token, (tokens,): the token after each input or IGNORED; else what the task makes of it,
    of one shape for all examples."""
    where: str
    """Where it comes from, for messages."""


class Examples:
    """The examples of one split, in order."""

    def __init__(self, examples: Iterable[Example], *, is_token_by_token: bool = False) -> None:
        tokens: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        self.places: list[str] = []
        for example in examples:
            tokens.append(np.array(example.input_ids, dtype=np.int32))
            targets.append(np.asarray(example.target))
            self.places.append(example.where)
        self.is_token_by_token = is_token_by_token
        self.lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        """(examples,): tokens of each."""
        self._ends = self.lengths.cumsum()
        self._tokens = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
        if not targets:
            self._targets = np.zeros(0, np.int64)
        elif is_token_by_token:
            self._targets = np.concatenate(targets)
        else:
            self._targets = np.stack(targets)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def token_count(self) -> int:
        return len(self._tokens)

    @property
    def longest(self) -> int:
        """Most tokens that one has; 1 if there is none."""
        return int(self.lengths.max(initial=1))

    @property
    def targets(self) -> np.ndarray:
        """A row an example; token by token, (all tokens,)."""
        return self._targets

    def batch(self, numbers: Sequence[int], width: int | None = None) -> Batch:
        """Return the examples with these numbers, padded on the right with token 0.

        width: tokens to pad them to; as many as the longest has if None.
        """
        lengths = self.lengths[list(numbers)]
        shape = (len(lengths), int(lengths.max()) if width is None else width)
        input_ids = np.zeros(shape, dtype=np.int64)
        padded = np.full(shape, IGNORED, dtype=np.int64) if self.is_token_by_token else None
        for row, number in enumerate(numbers):
            end = self._ends[number]
            span = slice(end - lengths[row], end)
            input_ids[row, : lengths[row]] = self._tokens[span]
            if padded is not None:
                padded[row, : lengths[row]] = self._targets[span]
        targets = self._targets[list(numbers)] if padded is None else padded
        return Batch(input_ids, lengths, targets, self.is_token_by_token)

    def fingerprint(self) -> str:
        """Return a hash of all that can be learnt from them, and of their order."""
        digest = hashlib.sha256()
        for array in (self.lengths, self._tokens, self._targets):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class ExampleBatches:
    """Batches of `batch_size` examples, without end."""

    def __init__(self, examples: Examples, *, batch_size: int, seed: int) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        # A pool of more than half an epoch would put the same examples together again and again.
        self._pool_batches = min(POOL_BATCHES, max(1, len(examples) // (2 * batch_size)))
        self._orders: dict[int, np.ndarray] = {}
        self._pool: tuple[int, list[np.ndarray]] = (-1, [])
        self.sequences_per_epoch = len(examples)

    def batch(self, step: int) -> Batch:
        """Return the batch of optimizer step `step`, which counts from 0."""
        return self._examples.batch(self._numbers(step).tolist())

    def describe(self, step: int) -> str:
        """Return where the examples of the batch of step `step` come from."""
        places = [self._examples.places[number] for number in self._numbers(step)]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        return f"{', '.join(places[:3])}{more}"

    def _numbers(self, step: int) -> np.ndarray:
        number, position = divmod(step, self._pool_batches)
        if self._pool[0] != number:
            self._pool = (number, self._batches_of_pool(number))
        return self._pool[1][position]

    def _batches_of_pool(self, number: int) -> list[np.ndarray]:
        size = self._pool_batches * self._batch_size
        first, count = number * size, len(self._examples)
        random = np.random.default_rng(mix(self._seed, number, 2))
        pool = np.array([self._order(at // count)[at % count] for at in range(first, first + size)])
        # Sorted by length; those of the same length as the epoch's order has them.
        pool = pool[np.argsort(self._examples.lengths[pool], kind="stable")]
        batches = np.split(pool, self._pool_batches)
        return [batches[place] for place in random.permutation(self._pool_batches)]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) > 2:
                self._orders.clear()
            random = np.random.default_rng(mix(self._seed, epoch, 3))
            self._orders[epoch] = random.permutation(len(self._examples))
        return self._orders[epoch]


def evaluation_batches(examples: Examples, tokens: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield every example once, the longest first, as (numbers of the examples, batch).

    tokens: of a batch, padding included; what is longer comes alone.
    """
    budget = TokenBudget(tokens, context_length=examples.longest)
    for numbers, width in budget.batches(examples.lengths):
        yield numbers, examples.batch(numbers.tolist(), width)


def hold_out(
    keys: Sequence[Hashable], fraction: float, seed: int, strata: Sequence[Hashable] | None = None
) -> np.ndarray:
    """Return (examples,) bool: which of them are held out, about `fraction` of the different keys.

    keys: examples of equal keys land on the same side, so that no held-out input was trained on.
    strata: of each stratum (that of a key's first example), the same share is held out.
    """
    first_of: dict[Hashable, int] = {}
    for number, key in enumerate(keys):
        first_of.setdefault(key, number)
    by_stratum: dict[Hashable, list[Hashable]] = {}
    for key, number in first_of.items():
        by_stratum.setdefault(strata[number] if strata else None, []).append(key)
    held_out = set()
    for group, members in enumerate(by_stratum.values()):
        count = round(fraction * len(members))
        for position, key in enumerate(members):
            if permuted(position, len(members), mix(seed, group)) < count:
                held_out.add(key)
    return np.array([key in held_out for key in keys], dtype=bool)
