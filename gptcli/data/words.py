"""Words: GPT-2's tokens of a text, each of its words tokenized once.

GPT-2's tokenizer cuts a text into words (letters, digits or signs, with the space before them; white
space; 's, 'll and the like), and makes tokens of each by itself. Most words of a text stood there
before, so `WordMemory`

1. finds the cuts, for the whole text at once;
2. looks up the words of at most 16 bytes in a table;
3. has the others tokenized, each once, and remembers the short ones;
4. lays out the tokens of all words.

What characters beyond ASCII are (letters, digits, white space), the tokenizer knows: between the nearest
two cuts that do not depend on them, text is one word here.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LETTER, _DIGIT, _SPACE, _SIGN, _BEYOND_ASCII = range(5)
_KINDS = np.full(256, _SIGN, dtype=np.uint8)
_KINDS[128:] = _BEYOND_ASCII
_KINDS[[*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)]] = _LETTER
_KINDS[list(b"0123456789")] = _DIGIT
_KINDS[list(b" \t\n\v\f\r")] = _SPACE

# Bytes of a word that is remembered: it is looked up by its first eight and its other bytes, as numbers.
_LONGEST = 16
_TABLE_BITS = 18
_HASH_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
_HASH_SHIFT = np.uint64(64 - _TABLE_BITS)
# By how many bytes of a number count.
_MASKS = np.array([2 ** (8 * count) - 1 for count in range(9)], dtype=np.uint64)
# Tokens that are kept. Words that share a slot are learnt again and again, so at last all is forgotten.
_MOST_TOKENS = 2**22
# Words that are tokenized as one text: each text has a thread of the tokenizer's.
_WORDS_OF_A_TEXT = 500
_NO_TOKENS = np.zeros(0, dtype=np.uint32)


def cuts_like_gpt2(tokenizer: Tokenizer) -> bool:
    """Whether `tokenizer` cuts text into words as GPT-2's does, and always makes the same of a word."""
    splitter: Any = tokenizer.pre_tokenizer
    if splitter is None or tokenizer.normalizer is not None:
        return False
    rules = json.loads(splitter.__getstate__())
    return (
        rules["type"] == "ByteLevel"
        and rules["use_regex"]
        and not rules["add_prefix_space"]
        and not getattr(tokenizer.model, "dropout", None)
    )


class _Words(NamedTuple):
    """The words of a text."""

    raw: bytes
    """The text in UTF-8."""
    cuts: np.ndarray
    """(words + 1,): where each begins, and where the last one ends."""
    first: np.ndarray
    """(words,): their first eight bytes as a number, as `_numbers_of` says."""
    second: np.ndarray
    """(words,): the eight bytes behind those."""


class WordMemory:
    """Makes tokens of texts, and remembers those of their words. For one thread at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """tokenizer: one that `cuts_like_gpt2`."""
        self._tokenizer = tokenizer
        self._added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        line_feed = self._tokenize(["\n"])[0].tolist()
        self._line_feed = line_feed[0] if len(line_feed) == 1 else None
        self._forget()

    def _forget(self) -> None:
        # By slot: a word as two numbers (a first one of 0 is none), and its place in the lists below.
        self._first, self._second = np.zeros((2, 1 << _TABLE_BITS), dtype=np.uint64)
        self._places = np.zeros(1 << _TABLE_BITS, dtype=np.int64)
        # By place: where the word's tokens begin in the third list, and how many there are.
        self._begins, self._counts = np.zeros((2, 0), dtype=np.int64)
        self._tokens = np.zeros(0, dtype=np.uint32)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return (tokens,), uint32, of each text: what the tokenizer makes of it, no token added."""
        # The next text is cut while the last is looked up.
        with ThreadPoolExecutor(1, "cutting") as thread:
            return list(map(self._encode, texts, thread.map(self._cut, texts)))

    def _cut(self, text: str) -> _Words | None:
        """Return the words of `text`; None if there are none, or it is no text of words alone."""
        # Added tokens go before words, and zero bytes could not be told from the end of a short word.
        if not text or "\0" in text or self._holds_added_token(text):
            return None
        raw = text.encode()
        padded = np.frombuffer(raw + bytes(_LONGEST), dtype=np.uint8)
        cuts = find_cuts(padded, len(raw))
        return _Words(raw, cuts, *_numbers_of(padded, cuts))

    def _encode(self, text: str, words: _Words | None) -> np.ndarray:
        if words is None:
            return self._tokenize([text])[0]
        raw, cuts, first, second = words
        if len(self._tokens) > _MOST_TOKENS:
            self._forget()
        places = self._look_up(first, second)
        is_short = np.diff(cuts) <= _LONGEST
        unknown = np.flatnonzero((places < 0) | ~is_short)
        places[unknown] = self._learn(
            [
                raw[begin:end]
                for begin, end in zip(cuts[unknown].tolist(), cuts[unknown + 1].tolist(), strict=True)
            ]
        )
        new = unknown[is_short[unknown]]
        self._remember(first[new], second[new], places[new])
        # Each word's tokens go behind those of the words before it.
        counts = self._counts[places]
        ends = np.cumsum(counts)
        shifts = self._begins[places] - (ends - counts)
        tokens: np.ndarray = self._tokens[np.repeat(shifts, counts) + np.arange(ends[-1])]
        return tokens

    def _look_up(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return (words,), int64: the place of each word, -1 if it is unknown."""
        slots = _slots_of(first, second)
        is_there = (self._first[slots] == first) & (self._second[slots] == second)
        places = np.where(is_there, self._places[slots], -1)
        rest = np.flatnonzero(~is_there)
        slots = _second_slots(slots[rest])
        is_there = (self._first[slots] == first[rest]) & (self._second[slots] == second[rest])
        places[rest[is_there]] = self._places[slots[is_there]]
        return places

    def _remember(self, first: np.ndarray, second: np.ndarray, places: np.ndarray) -> None:
        """Put words into their first slots or, where another word is, into their second ones."""
        slots = _slots_of(first, second)
        is_taken = self._first[slots] != 0
        slots[is_taken] = _second_slots(slots[is_taken])
        self._first[slots] = first
        self._second[slots] = second
        self._places[slots] = places

    def _learn(self, words: list[bytes]) -> list[int]:
        """Add the tokens of `words` to the lists and return the place of each word."""
        distinct = {word: word.decode() for word in dict.fromkeys(words)}
        lines = [word for word, text in distinct.items() if _can_be_a_line(text)]
        # A line a word, some are tokenized together, which is several times as fast.
        together = [
            "".join(f"{distinct[word]}\n" for word in lines[first : first + _WORDS_OF_A_TEXT])
            for first in range(0, len(lines), _WORDS_OF_A_TEXT)
        ]
        if self._line_feed is None or any(map(self._holds_added_token, together)):
            lines, together = [], []
        in_lines = set(lines)
        others = [word for word in distinct if word not in in_lines]
        all_ids = self._tokenize([*together, *(distinct[word] for word in others)])
        of_others = all_ids[len(together) :]
        ids = np.concatenate([_NO_TOKENS, *all_ids[: len(together)]])
        is_end = ids == self._line_feed
        line_counts = np.diff(np.flatnonzero(is_end), prepend=-1) - 1
        counts = np.array([*line_counts.tolist(), *map(len, of_others)], dtype=np.int64)
        places = {word: place for place, word in enumerate([*lines, *others], len(self._counts))}
        self._begins = np.concatenate([self._begins, len(self._tokens) + np.cumsum(counts) - counts])
        self._counts = np.concatenate([self._counts, counts])
        self._tokens = np.concatenate([self._tokens, ids[~is_end], *of_others])
        return [places[word] for word in words]

    def _tokenize(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def _holds_added_token(self, text: str) -> bool:
        return any(token in text for token in self._added)


def _can_be_a_line(word: str) -> bool:
    """Whether `word` has the same tokens between line feeds: no white space at its ends but a space."""
    inner = word.removeprefix(" ")
    return inner != "" and inner.strip() == inner and "\n" not in inner


def _slots_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    mixed: np.ndarray = (first * _HASH_FACTORS[0]) ^ (second * _HASH_FACTORS[1])
    return (mixed >> _HASH_SHIFT).astype(np.int64)


def _second_slots(slots: np.ndarray) -> np.ndarray:
    """Return where a word goes whose slot is taken: into the one beside it."""
    return slots ^ 1


def _numbers_of(padded: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (words,) twice, uint64: the first eight bytes of each word, and the eight behind them."""
    # A number at every byte, whatever the alignment.
    numbers = np.ndarray((len(padded) - 7,), dtype="<u8", buffer=padded, strides=(1,))
    begins, lengths = cuts[:-1], np.minimum(np.diff(cuts), _LONGEST)
    first = numbers[begins] & _MASKS[np.minimum(lengths, 8)]
    second = numbers[begins + 8] & _MASKS[np.maximum(lengths - 8, 0)]
    return first, second


def find_cuts(padded: np.ndarray, size: int) -> np.ndarray:
    """Return (words + 1,), int64: where each word of a text begins, and where the last one ends.

    padded: the text in UTF-8, of `size` bytes, one or more, and some zeros.
    """
    text = padded[:size]
    kinds = _KINDS[text]
    is_space = kinds == _SPACE
    is_cut = np.ones(size + 1, dtype=np.bool_)  # Before each byte, and at the end.
    inner = is_cut[1:-1]
    np.not_equal(kinds[1:], kinds[:-1], out=inner)
    inner &= text[:-1] != ord(" ")  # It belongs to the word behind it.
    # Of white space before a word, the last character stands by itself, or is that space.
    inner[:-1] |= is_space[:-2] & is_space[1:-1] & ~is_space[2:]
    _cut_contractions(padded, np.flatnonzero((text == ord("'")) & is_cut[:-1]), is_cut)
    if text.max() >= 128:
        _join_beyond_ascii(kinds, is_cut)
    return np.flatnonzero(is_cut)


def _cut_contractions(padded: np.ndarray, quotes: np.ndarray, is_cut: np.ndarray) -> None:
    """Make one word of each of 's 't 'm 'd 're 've 'll. quotes: where a word begins with a quote."""
    one, two = padded[quotes + 1], padded[quotes + 2]
    is_one = np.isin(one, list(b"stmd"))
    is_two = (np.isin(one, list(b"rv")) & (two == ord("e"))) | ((one == ord("l")) & (two == ord("l")))
    is_cut[quotes[is_one | is_two] + 1] = False
    is_cut[quotes[is_one] + 2] = True
    is_cut[quotes[is_two] + 3] = True


def _join_beyond_ascii(kinds: np.ndarray, is_cut: np.ndarray) -> None:
    """Take away the cuts that may depend on what a character beyond ASCII is.

    White space that follows a letter, digit or sign is always cut off from it, all of these in ASCII.
    """
    is_certain = np.ones(len(kinds), dtype=np.bool_)
    is_solid = (kinds != _SPACE) & (kinds != _BEYOND_ASCII)
    np.logical_and(is_solid[:-1], kinds[1:] == _SPACE, out=is_certain[1:])
    begins = np.flatnonzero(is_certain)
    holds_one = np.logical_or.reduceat(kinds == _BEYOND_ASCII, begins)
    is_joined = np.repeat(holds_one, np.diff(begins, append=len(kinds)))
    is_joined[begins] = False
    is_cut[:-1] &= ~is_joined
