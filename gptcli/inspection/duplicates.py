"""Texts that are there more than once, letter for letter or nearly.

`Copies` finds those that are equal, and `NearCopies` those of which most runs of words are the same:

1. A text becomes the set of its runs of RUN_WORDS words ("shingles", Broder 1997), without regard to
   capitals and punctuation. How near two texts are is the share of the runs of both that both have
   (Jaccard).
2. BANDS * ROWS hash functions each have a smallest value over the runs of a text; two texts agree in
   such a minimum with a probability that is just that share (MinHash). Texts that agree in all ROWS
   minima of a band become candidates.
3. Of candidates the share is computed exactly: none is found wrongly. Of pairs that share NEAR (0.7) of
   their runs, 97% become candidates, of those that share 0.8, 99.9%.

Each text is compared with the first and with the one before of those that it agrees with, so that the
work does not grow with the square of how often something is repeated.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from gptcli.evaluation.overlap import MIN_WORDS, words_of
from gptcli.inspection.findings import Finding, share

RUN_WORDS = 3
NEAR = 0.7
"""Of two texts of 20 words, one of which has another word in one place, 15 of 21 runs are the same."""
BANDS, ROWS = 20, 5
MAX_WORDS = 10_000_000
"""About 60 MB of English. What comes later is not compared, which is then said."""
MAX_TEXTS = 2_000_000
FEW = 0.01
"""Up to this share of the text, repetitions are no reason to do anything."""
# Runs that are looked at together.
_AT_ONCE = 2**20
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


@dataclass(frozen=True)
class Repeats:
    """How many texts repeat an earlier one."""

    texts: int
    """That were compared."""
    repeated: int
    """Those of them that repeat an earlier one."""
    characters: int
    repeated_characters: int
    where: str | None
    """The first that does."""
    earlier: str | None
    """What that one repeats."""
    likeness: float | None = None
    """Of these two: the share of their runs of words that both have."""
    not_compared: int = 0


class Copies:
    """Counts texts that are equal to an earlier one."""

    def __init__(self) -> None:
        # Python's own hash differs from process to process, and two texts share one too easily.
        self._places: dict[bytes, str] = {}
        self._texts = self._repeated = self._characters = self._repeated_characters = 0
        self._not_compared = 0
        self._first: tuple[str, str] | None = None

    def add(self, text: str, where: str) -> bool:
        """Add a text; return whether it was there before."""
        if len(self._places) >= MAX_TEXTS:
            self._not_compared += 1
            return False
        self._texts += 1
        self._characters += len(text)
        digest = _digest(text)
        earlier = self._places.get(digest)
        if earlier is None:
            self._places[digest] = where
            return False
        self._repeated += 1
        self._repeated_characters += len(text)
        self._first = self._first or (where, earlier)
        return True

    def result(self) -> Repeats:
        where, earlier = self._first or (None, None)
        counts = (self._texts, self._repeated, self._characters, self._repeated_characters)
        return Repeats(*counts, where, earlier, not_compared=self._not_compared)


class NearCopies:
    """Finds texts that are nearly the same as an earlier one, but not equal to it."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._ids: dict[str, int] = {}
        self._words = array("I")
        self._counts: list[int] = []
        self._characters: list[int] = []
        self._places: list[str] = []
        self._not_compared = 0

    def add(self, text: str, where: str) -> None:
        """Add a text. Those of fewer than MIN_WORDS words are left out, and those equal to another."""
        if len(self._words) >= MAX_WORDS or len(self._places) >= MAX_TEXTS:
            self._not_compared += 1
            return
        words, digest = words_of(text), _digest(text)
        if len(words) < MIN_WORDS or digest in self._seen:
            return
        self._seen.add(digest)
        self._words.extend(self._ids.setdefault(word, len(self._ids)) for word in words)
        self._counts.append(len(words))
        self._characters.append(len(text))
        self._places.append(where)

    def result(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Repeats:
        """Return what was found. progress is called with (bands done, all)."""
        runs, counts = self._runs()
        near = _NearTexts(runs, counts)
        if len(counts) > 1:
            random = np.random.default_rng(0)
            for band in range(BANDS):
                near.look_in(_band_keys(runs, counts, random))
                progress(band + 1, BANDS)
        copies = np.flatnonzero(near.earlier >= 0)
        first = copies[0] if len(copies) else None
        return Repeats(
            len(counts),
            len(copies),
            sum(self._characters),
            int(np.array(self._characters, np.int64)[copies].sum()),
            None if first is None else self._places[first],
            None if first is None else self._places[near.earlier[first]],
            None if first is None else round(float(near.likeness[first]), 4),
            self._not_compared,
        )

    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes of all runs, (runs,), text by text, and how many each text has, (texts,)."""
        random = np.random.default_rng(1)
        values = random.integers(0, 2**64, len(self._ids), np.uint64)
        words = np.frombuffer(self._words, np.uint32) if self._words else np.zeros(0, np.uint32)
        count = max(0, len(words) - RUN_WORDS + 1)
        hashes = np.zeros(count, np.uint64)
        for place, factor in enumerate(_FACTORS):
            hashes += values[words[place : place + count]] * factor
        counts = np.array(self._counts, np.int64)
        owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        is_whole = owners[:count] == owners[RUN_WORDS - 1 :]
        return _mixed(hashes[is_whole]), counts - RUN_WORDS + 1


class _NearTexts:
    """Which texts are near to an earlier one, as far as is known."""

    def __init__(self, runs: np.ndarray, counts: np.ndarray) -> None:
        self._runs = runs
        self._counts = counts
        self._starts = np.cumsum(counts) - counts
        self.earlier = np.full(len(counts), -1, np.int64)
        """(texts,): the number of the one that each is near to; -1 if none is known."""
        self.likeness = np.zeros(len(counts))

    def look_in(self, keys: np.ndarray) -> None:
        """Compare texts with equal keys, (texts,)."""
        order = np.argsort(keys, kind="stable")
        is_first = np.ones(len(order), bool)
        is_first[1:] = keys[order[1:]] != keys[order[:-1]]
        firsts = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
        later = np.flatnonzero(~is_first)
        for earlier in (firsts[later], order[later - 1]):
            is_open = self.earlier[order[later]] < 0
            self._compare(earlier[is_open], order[later][is_open])

    def _compare(self, left: np.ndarray, right: np.ndarray) -> None:
        """Note which of the pairs are near; left: of each the earlier one."""
        sizes = self._counts[left] + self._counts[right]
        parts = np.cumsum(sizes) // _AT_ONCE
        for part in np.unique(parts):
            these = parts == part
            likeness = self._likeness(left[these], right[these])
            is_near = likeness >= NEAR
            self.earlier[right[these][is_near]] = left[these][is_near]
            self.likeness[right[these][is_near]] = likeness[is_near]

    def _likeness(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return (pairs,): the share of the runs of both texts that both have."""
        (of_left, left_pairs), (of_right, right_pairs) = self._runs_of(left), self._runs_of(right)
        common = np.isin(of_left, of_right, assume_unique=True)
        both = np.bincount(left_pairs[common], minlength=len(left))
        either = np.bincount(left_pairs, minlength=len(left)) + np.bincount(
            right_pairs, minlength=len(left)
        )
        shares: np.ndarray = both / (either - both)
        return shares

    def _runs_of(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct runs of each text, and the number of the text in `texts`."""
        counts = self._counts[texts]
        pairs = np.repeat(np.arange(len(texts)), counts)
        places = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
        # The same run in two pairs is two.
        hashes = self._runs[self._starts[texts][pairs] + places] + pairs.astype(np.uint64) * _FACTORS[0]
        distinct, indices = np.unique(hashes, return_index=True)
        return distinct, pairs[indices]


def _band_keys(runs: np.ndarray, counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return (texts,): a hash of ROWS minima, each of another hash function over the runs of a text."""
    starts = np.cumsum(counts) - counts
    keys = np.zeros(len(counts), np.uint64)
    for _ in range(ROWS):
        salt, factor = random.integers(0, 2**64, 2, np.uint64)
        minima = np.minimum.reduceat((runs ^ salt) * (factor | np.uint64(1)), starts)
        keys = _mixed(keys ^ minima)
    return keys


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """Return hashes all of whose bits depend on all bits of those given."""
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _FACTORS[1]
    mixed: np.ndarray = hashes ^ (hashes >> np.uint64(32))
    return mixed


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def copies_findings(copies: Repeats, unit: str) -> Iterator[Finding]:
    """unit: what the texts are called, such as "examples"."""
    repeated = share(copies.repeated_characters, copies.characters)
    message = (
        f"{copies.repeated:,} of {copies.texts:,} {unit} ({share(copies.repeated, copies.texts)}) "
        f"repeat an earlier one, {repeated} of the text"
    )
    yield from _of_repeats("duplicates", copies, message)


def near_findings(near: Repeats, unit: str) -> Iterator[Finding]:
    message = (
        f"{near.repeated:,} of {near.texts:,} different {unit} of {MIN_WORDS} words or more "
        f"({share(near.repeated, near.texts)}) are nearly the same as an earlier one: {NEAR:.0%} or "
        f"more of their runs of {RUN_WORDS} words are in both"
    )
    yield from _of_repeats("near-duplicates", near, message)


def _of_repeats(subject: str, repeats: Repeats, message: str) -> Iterator[Finding]:
    if repeats.not_compared:
        message += f"; {repeats.not_compared:,} more, behind them, were not compared"
    where = None
    if repeats.where is not None and repeats.earlier is not None:
        # In the same file its line is enough.
        file, _, place = repeats.earlier.rpartition(":")
        is_same_file = file == repeats.where.rpartition(":")[0]
        where = f"{repeats.where} as {place.strip() if is_same_file else repeats.earlier}"
    is_few = repeats.repeated_characters <= FEW * repeats.characters
    if is_few:
        yield Finding("ok", subject, message, where)
        return
    yield Finding(
        "warning",
        subject,
        message,
        where,
        "What is there several times is learnt by heart and weighs more: keep one of each, unless that "
        "is meant.",
    )
