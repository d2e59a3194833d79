"""Whatever the text, the tokens are those that the tokenizer makes of the whole of it."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gptcli.data import words
from gptcli.data.tokenizing import TextEncoder, load_tokenizer
from gptcli.data.words import WordMemory, cuts_like_gpt2, find_cuts
from tests.conftest import TEXT

# What GPT-2's rules are about: each kind of character, and those that could be taken for another.
PARTS = [
    *("a", "B", "thing", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'l", "'r", "'", "''"),
    *(" ", "  ", "\n", "\n\n", "\t", "\r", "\v", "\f", "\x1c", "\x1f", "\x7f", "\x00", "_", "-", "?!"),
    *("7", "2026", "\x85", "\xa0", "\u3000", "\u2028", "\u200b", "é", "e\u0301", "ß", "Ж", "漢字", "😀"),
    *("²", "½", "٣", "ª", "£", "“", "’s", "an extraordinarily-long", "incomprehensibilities"),
]


def cut(text: str) -> list[str]:
    raw = text.encode()
    padded = np.frombuffer(raw + bytes(16), dtype=np.uint8)
    cuts = find_cuts(padded, len(raw)).tolist()
    return [raw[begin:end].decode() for begin, end in itertools.pairwise(cuts)]


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return what the tokenizer says of the text as one."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


# By hand, from GPT-2's pattern:
# 's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        (" ", [" "]),
        ("Hello, world 42!", ["Hello", ",", " world", " 42", "!"]),
        ("a  b", ["a", " ", " b"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("a \n b", ["a", " \n", " b"]),
        ("a\tb", ["a", "\t", "b"]),
        ("a  \n", ["a", "  \n"]),
        ("it's", ["it", "'s"]),
        ("we'll've", ["we", "'ll", "'ve"]),
        ("'seven'", ["'s", "even", "'"]),
        ("a 's", ["a", " '", "s"]),
        ("''s", ["''", "s"]),
        ("IT'S", ["IT", "'", "S"]),
        ("x2y", ["x", "2", "y"]),
        ("a_b", ["a", "_", "b"]),
        # What stands beside é is left to the tokenizer, up to white space.
        ("the caf\u00e9's door", ["the", " caf\u00e9's", " door"]),
        ("the \u00e9tude", ["the", " \u00e9tude"]),
        # U+3000 is white space, which belongs together: no cut before the space.
        ("a\u3000 b", ["a\u3000 b"]),
    ],
)
def test_text_is_cut_into_words_as_gpt2_does(text: str, expected: list[str]) -> None:
    assert cut(text) == expected


@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join) | st.text())
def test_the_tokens_are_those_of_the_whole_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    memory = WordMemory(tokenizer.backend_tokenizer)
    expected = whole(tokenizer, text)
    # Learnt, and then remembered.
    assert memory.encode_batch([text])[0].tolist() == expected
    assert memory.encode_batch([text])[0].tolist() == expected


@pytest.mark.parametrize("table_bits", [1, 4, 18])
@pytest.mark.parametrize("most_tokens", [10, 2**22])
def test_words_that_share_a_slot_and_what_is_forgotten_change_nothing(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    table_bits: int,
    most_tokens: int,
) -> None:
    monkeypatch.setattr(words, "_TABLE_BITS", table_bits)
    monkeypatch.setattr(words, "_HASH_SHIFT", np.uint64(64 - table_bits))
    monkeypatch.setattr(words, "_MOST_TOKENS", most_tokens)
    memory = WordMemory(tokenizer.backend_tokenizer)
    drawn = random.Random(0)
    for _ in range(100):
        text = "".join(drawn.choices(PARTS, k=60))
        assert memory.encode_batch([text])[0].tolist() == whole(tokenizer, text)


def test_a_word_is_tokenized_once(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = WordMemory(tokenizer.backend_tokenizer)
    learnt: list[bytes] = []
    learn = memory._learn

    def note(new: list[bytes]) -> list[int]:
        learnt.extend(new)
        return learn(new)

    monkeypatch.setattr(memory, "_learn", note)
    memory.encode_batch([TEXT])
    assert {word.decode() for word in learnt} == set(cut(TEXT))
    learnt.clear()
    memory.encode_batch([TEXT])
    assert learnt == []


def test_tokens_that_were_added_are_found_first(tokenizer_of_its_own: PreTrainedTokenizerFast) -> None:
    tokenizer_of_its_own.add_tokens([AddedToken("cat sat", lstrip=True)])
    memory = WordMemory(tokenizer_of_its_own.backend_tokenizer)
    assert memory.encode_batch([TEXT])[0].tolist() == whole(tokenizer_of_its_own, TEXT)
    assert len(tokenizer_of_its_own) - 1 in memory.encode_batch([TEXT])[0]


@pytest.fixture
def tokenizer_of_its_own(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> PreTrainedTokenizerFast:
    tokenizer.save_pretrained(tmp_path / "own")
    return load_tokenizer(str(tmp_path / "own"))


def splitting(splitter: Any, *, normalizer: Any = None, dropout: float | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(dropout=dropout))
    tokenizer.pre_tokenizer = splitter
    tokenizer.normalizer = normalizer
    return tokenizer


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (splitting(BYTE_LEVEL), True),
        (splitting(None), False),
        (splitting(pre_tokenizers.ByteLevel(add_prefix_space=True)), False),
        (splitting(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)), False),
        (splitting(pre_tokenizers.Whitespace()), False),
        (splitting(pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTE_LEVEL])), False),
        (splitting(BYTE_LEVEL, normalizer=normalizers.NFC()), False),
        (splitting(BYTE_LEVEL, dropout=0.1), False),
    ],
)
def test_only_tokenizers_that_cut_like_gpt2_are_taken(tokenizer: Tokenizer, expected: bool) -> None:
    assert cuts_like_gpt2(tokenizer) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_texts_that_are_encoded_at_once_keep_their_order(
    tokenizer: PreTrainedTokenizerFast, count: int
) -> None:
    texts = [f"{number} {TEXT[number:]}" for number in range(count)]
    encoder = TextEncoder(tokenizer)
    for batch in (texts, [*texts, "", "short"], ["short", *(text[:20] for text in texts)], []):
        found = [ids.tolist() for ids in encoder.encode_batch(batch)]
        assert found == [whole(tokenizer, text) for text in batch]


def test_other_tokenizers_encode_as_ever(tokenizer_of_its_own: PreTrainedTokenizerFast) -> None:
    backend: Any = tokenizer_of_its_own.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTE_LEVEL])
    text = TEXT + "2026"
    (found,) = TextEncoder(tokenizer_of_its_own).encode_batch([text])
    assert found.tolist() == whole(tokenizer_of_its_own, text)


def test_gpt2s_own_tokenizer_gives_the_same_tokens_of_every_language(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "gpt2-tokenizer"))
    memory = WordMemory(tokenizer.backend_tokenizer)
    files = sorted((shared_data / "languages" / "udhr").glob("*.txt"))
    assert len(files) >= 40
    for file in files:
        text = file.read_bytes().decode()
        assert memory.encode_batch([text])[0].tolist() == whole(tokenizer, text), file.name
