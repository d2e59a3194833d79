"""What a test and the training text share, and what a model says that it has read.

Both answers come from one pass over training text of any size; memory is bounded by the texts asked for.

1. `ItemGrams`: which test items stand (nearly) in the training text. A score on such an item measures
   memory. As in appendix C of the GPT-3 paper (Brown et al. 2020, "Language Models are Few-Shot
   Learners"), runs of 13 words are compared.
2. `CopiedSpans`: the longest span of each generated text that is copied from the training text.

Words are runs of letters and digits, without regard to capitals. In scripts without spaces every
character is one. Marks (accents, vowel signs) belong to the letter that they follow.

What is compared is compared by 64-bit hashes. In text that is not made to deceive them, something is
found wrongly with a probability of about n * m / 2**64, for n words or bytes of training text and m of
the texts asked for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat

import numpy as np

GRAM_WORDS = 13
MIN_WORDS = 5
"""An item of fewer words ("I do not know.") occurs in any large text: to find it there tells nothing."""
NEAR_DUPLICATE_OVERLAP = 0.5
MIN_SPAN_BYTES = 24
"""Of UTF-8: four or five English words, eight Chinese characters. Any two texts share shorter spans."""

# Han, kana, Thai and Lao, Myanmar, Khmer. (Korean has spaces.)
_SPACELESS = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001aff0-\U0001b16f"
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
)
# Stands between documents where words do: no item has it, so that no n-gram goes across.
_NO_WORD = ""

# Bytes that UTF-8 never has, so that no span goes across.
_END_OF_TEXT = b"\xff"
_END_OF_DOCUMENT = b"\xfe"
# Characters, words or bytes that are looked at together.
_AT_ONCE = 2**18

# Odd, and 5 modulo 8: its powers modulo 2**64 repeat as late as can be.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


@dataclass(frozen=True)
class Leaks:
    """How much of a test stands in the training text."""

    items: int
    too_short: int
    """Items of fewer than MIN_WORDS words, of which nothing can be told."""
    touched: int
    """Items of which any n-gram stands in the training text."""
    near_duplicates: int
    """Those of them whose overlap is at least NEAR_DUPLICATE_OVERLAP."""
    overlap: np.ndarray
    """(items,): the share of an item's distinct n-grams in the training text; NaN if it is too short."""
    worst: list[int]
    """Indices of the touched items, the largest overlap first, equal ones in order."""


@dataclass(frozen=True)
class CopiedSpan:
    """The longest span of a text that stands word for word in the training text."""

    text: str
    """Empty if no span of MIN_SPAN_BYTES is copied."""
    characters: int
    words: int
    """Whole or cut."""


class ItemGrams:
    """The n-grams of test items, to be looked for in the training text.

    An item's n-grams are its runs of GRAM_WORDS words; an item that is shorter is one n-gram.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._ids: dict[str, int] = {_NO_WORD: 0}
        ids: list[int] = []
        counts: list[int] = []
        for text in texts:
            words = words_of(text)
            ids += [self._ids.setdefault(word, len(self._ids)) for word in words]
            counts.append(len(words))
        self._longest_word = max(map(len, self._ids))
        # Any seed serves that is the same in all processes.
        self._values = np.random.default_rng(0).integers(0, 2**64, len(self._ids), np.uint64)
        self._word_counts = np.array(counts, np.int64)
        hashes = _RunHashes(self._values[np.array(ids, np.int64)])
        gram_lengths = np.minimum(self._word_counts, GRAM_WORDS)
        ends = np.cumsum(self._word_counts)
        self._grams: list[_Grams] = []
        for length in np.unique(gram_lengths[gram_lengths >= MIN_WORDS]).tolist():
            items = np.flatnonzero(gram_lengths == length)
            counts_here = self._word_counts[items] - length + 1
            owners = np.repeat(items, counts_here)
            # 0, 1, ... for every item.
            places = np.arange(len(owners)) - np.repeat(
                np.cumsum(counts_here) - counts_here, counts_here
            )
            starts = ends[owners] - self._word_counts[owners] + places
            self._grams.append(_Grams(length, owners, hashes.of_runs(starts, length)))

    def look_in(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """Look for the n-grams in training text: pieces, and whether a document ends with each.

        N-grams, and words, go across the end of a piece but not of a document.
        """
        for words in _words_in(pieces, self._longest_word):
            ids = np.fromiter(map(self._ids.get, words, repeat(0)), np.int64, len(words))
            hashes = _RunHashes(self._values[ids])
            for grams in self._grams:
                _, found = grams.table.find(hashes.of_length(grams.length))
                grams.is_found[found] = True

    def result(self) -> Leaks:
        overlap = np.full(len(self._word_counts), np.nan)
        for grams in self._grams:
            counts = np.bincount(grams.items, minlength=len(overlap))
            found = np.bincount(grams.items, grams.is_found[grams.indices], len(overlap))
            np.divide(found, counts, out=overlap, where=counts > 0)
        touched = np.flatnonzero(overlap > 0)
        return Leaks(
            items=len(overlap),
            too_short=int(np.isnan(overlap).sum()),
            touched=len(touched),
            near_duplicates=int((overlap >= NEAR_DUPLICATE_OVERLAP).sum()),
            overlap=overlap,
            worst=touched[np.argsort(-overlap[touched], kind="stable")].tolist(),
        )


class _Grams:
    """The n-grams of one length, and whose they are."""

    def __init__(self, length: int, items: np.ndarray, hashes: np.ndarray) -> None:
        """items, hashes: (n-grams,), the item that each is of, and its hash."""
        self.length = length
        distinct, indices = np.unique(hashes, return_inverse=True)
        self.table = _HashTable(distinct)
        self.is_found = np.zeros(len(distinct), bool)
        # An item has an n-gram once, however often it repeats it.
        self.items, self.indices = np.divmod(np.unique(items * len(distinct) + indices), len(distinct))
        """(distinct n-grams of each item,): the item, and the index in the table."""


class CopiedSpans:
    """Texts whose longest copied spans are looked for in the training text.

    1. All texts become one sequence of bytes, whose suffixes are sorted (a suffix array, Manber and
       Myers 1993). Suffixes that begin with the same MIN_SPAN_BYTES are neighbours then.
    2. Where a window of MIN_SPAN_BYTES of training text is one of theirs, its neighbours are found by
       binary search. How far they agree with the training text is noted: `_agreed`.
    3. In the end, what is known of a suffix is handed on to its neighbours as far as they agree with it.

    So every place of the training text is compared with a few suffixes, however often the texts or
    the training text repeat themselves, and yet the spans are the longest.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._text_count = len(encoded)
        self._longest = max(map(len, encoded), default=0)
        self._bytes = np.frombuffer(_END_OF_TEXT.join([b"", *encoded, b""]), np.uint8)
        self._hashes = _RunHashes(self._bytes.astype(np.uint64))
        self._ends_before = _sums(self._bytes == _END_OF_TEXT[0])
        """(bytes + 1,): texts that have ended before each byte; one before the first text."""
        is_inside = self._ends_before[MIN_SPAN_BYTES:] == self._ends_before[:-MIN_SPAN_BYTES]
        is_asked = np.zeros(len(self._bytes), bool)
        is_asked[: len(is_inside)] = is_inside & _begins_character(self._bytes)[: len(is_inside)]
        suffixes = _sorted_suffixes(self._bytes)
        self._suffixes = suffixes[is_asked[suffixes]]
        """(suffixes,): where those begin that begin with a character and MIN_SPAN_BYTES of a text."""
        self._agreed = np.zeros(len(self._suffixes), np.int64)
        """(suffixes,): bytes."""
        windows = self._hashes.of_runs(self._suffixes, MIN_SPAN_BYTES)
        distinct, self._first, counts = np.unique(windows, return_index=True, return_counts=True)
        self._windows = _HashTable(distinct)
        self._after = self._first + counts
        """(windows,) each: the first suffix that begins with a window, and the one after the last."""

    def look_in(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """Look for copies in training text: pieces, and whether a document ends with each.

        Spans go across the end of a piece but not of a document.
        """
        held = bytearray()
        for text, ends_document in _small_pieces(pieces):
            held += text.encode()
            if ends_document:
                held += _END_OF_DOCUMENT
            if len(held) >= max(_AT_ONCE, 4 * self._longest):
                # What begins later may go on in the next piece.
                done = len(held) - self._longest
                self._look_in_bytes(bytes(held), done)
                del held[:done]
        self._look_in_bytes(bytes(held), len(held))

    def _look_in_bytes(self, training: bytes, stop: int) -> None:
        """Look for what is copied from `training` and begins before `stop`."""
        text = np.frombuffer(training + _END_OF_DOCUMENT, np.uint8)
        hashes = _RunHashes(text.astype(np.uint64))
        places, windows = self._windows.find(hashes.of_length(MIN_SPAN_BYTES)[:stop])
        # Places with the same text behind them find the same. Only a repetitive text has many.
        reach = np.minimum(len(text) - places, self._longest)
        _, distinct = np.unique(hashes.of_runs(places, reach), return_index=True)
        places, windows = places[distinct], windows[distinct]
        low, high = self._first[windows], self._after[windows]
        # The search ends between the neighbours, and has looked at both.
        while len(places):
            middle = (low + high) // 2
            suffixes = self._suffixes[middle]
            agreed = _common_lengths(self._hashes, suffixes, hashes, places, self._longest)
            np.maximum.at(self._agreed, middle, agreed)
            is_before = self._bytes[suffixes + agreed] < text[places + agreed]
            low, high = np.where(is_before, middle + 1, low), np.where(is_before, high, middle)
            is_open = low < high
            places, low, high = places[is_open], low[is_open], high[is_open]

    def result(self) -> list[CopiedSpan]:
        """Return the span of most characters of each text, the first of them if there are several."""
        starts, agreed = self._suffixes, self._handed_on()
        begins = _begins_character(self._bytes)
        # A span ends where the last character of it does that is whole.
        borders = np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
        ends = borders[starts + agreed]
        characters_before = _sums(begins)
        characters = characters_before[ends] - characters_before[starts]
        texts = self._ends_before[starts] - 1
        order = np.lexsort((starts, -characters))
        order = order[(ends - starts >= MIN_SPAN_BYTES)[order]]
        spans = [CopiedSpan("", 0, 0)] * self._text_count
        copying, best = np.unique(texts[order], return_index=True)
        for index, suffix in zip(copying.tolist(), order[best].tolist(), strict=True):
            text = self._bytes[starts[suffix] : ends[suffix]].tobytes().decode()
            spans[index] = CopiedSpan(text, len(text), len(words_of(text)))
        return spans

    def _handed_on(self) -> np.ndarray:
        """Return `_agreed` as it is when every suffix has been compared with all of the text."""
        common = _common_lengths(
            self._hashes, self._suffixes[:-1], self._hashes, self._suffixes[1:], self._longest
        ).tolist()
        agreed: list[int] = self._agreed.tolist()
        for index, length in enumerate(common):
            agreed[index + 1] = max(agreed[index + 1], min(agreed[index], length))
        for index in range(len(common) - 1, -1, -1):
            agreed[index] = max(agreed[index], min(agreed[index + 1], common[index]))
        return np.array(agreed, np.int64)


class _RunHashes:
    """The hashes of all runs of a sequence: sum of value[i] * _BASE**i (Karp and Rabin 1987)."""

    def __init__(self, values: np.ndarray) -> None:
        """values: (length,), uint64. Their sums are modulo 2**64, as numpy's are."""
        self.length = len(values)
        self._sums = _sums(values * _powers(_BASE, self.length))
        self._inverses = _powers(_INVERSE, self.length + 1)

    def of_length(self, length: int) -> np.ndarray:
        """Return the hashes of all runs of `length` values, (self.length - length + 1,), in order."""
        hashes: np.ndarray = self._sums[length:] - self._sums[:-length]
        hashes *= self._inverses[: len(hashes)]
        return hashes

    def of_runs(self, starts: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
        """Return the hashes of the runs that start at `starts`, (runs,)."""
        hashes: np.ndarray = (self._sums[starts + lengths] - self._sums[starts]) * self._inverses[starts]
        return hashes


class _HashTable:
    """Hashes that are looked for among very many others."""

    def __init__(self, hashes: np.ndarray) -> None:
        """hashes: (hashes,), distinct, sorted."""
        self.hashes = hashes
        # A search costs much more than a look at the first bits, which rules out 15 of 16 or more.
        first_bits = (16 * len(hashes) + 1).bit_length()
        self._shift = np.uint64(64 - first_bits)
        self._is_begun = np.zeros(2**first_bits, bool)
        self._is_begun[hashes >> self._shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of `hashes` are in the table, and the index in it of each: (found,) both."""
        places = np.flatnonzero(self._is_begun[hashes >> self._shift])
        candidates = hashes[places]
        indices = np.minimum(np.searchsorted(self.hashes, candidates), len(self.hashes) - 1)
        is_found = self.hashes[indices] == candidates
        return places[is_found], indices[is_found]


def words_of(text: str) -> list[str]:
    """Return the words of a text, case-folded."""
    return _words().findall(text.casefold())


@cache
def _words() -> re.Pattern[str]:
    """Return what matches a word of case-folded text."""
    # Text is folded as lower() depends on what follows: Greek has two small sigmas. Marks are those of
    # the first plane: with others, `re` is ten times slower.
    marks = "".join(char for char in map(chr, range(2**16)) if unicodedata.category(char)[0] == "M")
    letter = rf"[^\W_{_SPACELESS}]"
    return re.compile(rf"{letter}++(?:[{marks}]++{letter}*+)*+|(?!\W)[{_SPACELESS}][{marks}]*+")


def _small_pieces(pieces: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """Yield the pieces, cut to _AT_ONCE characters."""
    for text, ends_document in pieces:
        for start in range(0, max(len(text), 1), _AT_ONCE):
            end = start + _AT_ONCE
            yield text[start:end], ends_document and end >= len(text)


def _words_in(pieces: Iterable[tuple[str, bool]], longest: int) -> Iterator[list[str]]:
    """Yield the words of all pieces in lists, with _NO_WORD at the end of each document.

    A list begins with the last GRAM_WORDS - 1 words of the one before. Words of more than `longest`
    characters may be cut, to more than that.
    """
    words: list[str] = []
    held = ""
    for text, ends_document in _small_pieces(pieces):
        # What ends with the piece may be a part of a word.
        text = held + text.casefold()
        found = _words().findall(text)
        held = ""
        if ends_document:
            found.append(_NO_WORD)
        elif found and text.endswith(found[-1]):
            # Cut, so that an endless word is not read again with every piece of it.
            held = found.pop()[: longest + 1]
        words += found
        if len(words) >= _AT_ONCE:
            yield words
            words = words[1 - GRAM_WORDS :]
    yield [*words, held]


def _sorted_suffixes(text: np.ndarray) -> np.ndarray:
    """Return where the suffixes of `text` begin, (bytes,), sorted by their bytes.

    Suffixes that are sorted by their first n bytes are sorted by 2 * n with one more sort: by their own
    ranks and those of what follows the n bytes (Manber and Myers 1993).
    """
    ranks = text.astype(np.int64)
    known = 1
    while True:
        keys = ranks * (max(len(text), 256) + 1)
        keys[:-known] += ranks[known:] + 1
        order = np.argsort(keys)
        keys = keys[order]
        ranks[order] = np.cumsum(np.concatenate([[0], keys[1:] != keys[:-1]]))
        known *= 2
        if known >= len(text) or ranks[order[-1]] == len(text) - 1:
            return order


def _common_lengths(
    left: _RunHashes, left_starts: np.ndarray, right: _RunHashes, right_starts: np.ndarray, longest: int
) -> np.ndarray:
    """Return how many values agree from each pair of starts on, (pairs,); at least `longest` counts."""
    common = np.zeros(len(left_starts), np.int64)
    step = 1 << longest.bit_length()
    while step := step // 2:
        left_from, right_from = left_starts + common, right_starts + common
        fits = (left_from + step <= left.length) & (right_from + step <= right.length)
        left_from, right_from = np.where(fits, left_from, 0), np.where(fits, right_from, 0)
        length = np.where(fits, step, 0)
        agrees = left.of_runs(left_from, length) == right.of_runs(right_from, length)
        common += length * agrees
    return common


def _begins_character(text: np.ndarray) -> np.ndarray:
    """Return which bytes of UTF-8 begin a character, (bytes,)."""
    begins: np.ndarray = (text & 0xC0) != 0x80
    return begins


def _sums(values: np.ndarray) -> np.ndarray:
    """Return the sums of the first 0, 1, ... values, (values + 1,)."""
    dtype = np.uint64 if values.dtype == np.uint64 else np.int64
    sums: np.ndarray = np.zeros(len(values) + 1, dtype)
    np.cumsum(values, out=sums[1:])
    return sums


def _powers(base: int, count: int) -> np.ndarray:
    """Return base**0, base**1, ... modulo 2**64, (count,)."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, out=powers)
