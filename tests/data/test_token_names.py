"""Tokens as people read them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gptcli.data.token_names import _bytes_by_character, token_names


def visible(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [name.visible for name in token_names(tokenizer, tokenizer.encode(text))]


def test_the_table_has_every_byte_once_and_the_characters_of_the_tokenizers_alphabet() -> None:
    table = _bytes_by_character()
    assert sorted(table.values()) == list(range(256))
    assert table.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    # As GPT-2's vocabulary has them.
    assert (table["Ġ"], table["Ċ"], table["A"], table["ä"]) == (0x20, 0x0A, 0x41, 0xE4)


@pytest.mark.parametrize(
    "text", ["The cat sat.\n", "深圳, Zürich, 🦉", "\x00\x1b[31m\u202e\xa0", "नमस्ते"]
)
def test_the_names_hold_the_bytes_of_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    names = token_names(tokenizer, tokenizer.encode(text))
    # \xe4 stands for a byte, all else for its own bytes in UTF-8.
    data = b"".join(
        bytes.fromhex(name.text.replace("\\x", "")) if "\\x" in name.text else name.text.encode()
        for name in names
    )
    assert data == text.encode()


def test_parts_of_characters_are_shown_as_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    # No merges of Chinese in this tokenizer: a token a byte of UTF-8.
    assert visible(tokenizer, "深") == ["\\xe6", "\\xb7", "\\xb1"]


def test_what_is_not_seen_is_written_out(tokenizer: PreTrainedTokenizerFast) -> None:
    assert "".join(visible(tokenizer, " \n\t\x1b\x7f")) == "·\\n\\t\\x1b\\x7f"
    (name,) = token_names(tokenizer, tokenizer.encode("\n"))
    assert (name.token, name.text, name.visible) == ("Ċ", "\n", "\\n")


def test_marks_that_turn_the_direction_of_writing_are_written_out() -> None:
    words = {"a\u202eb": 0, "\xa0": 1, "\u200b": 2}
    names = token_names(word_tokenizer(words), [0, 1, 2])
    # U+00A0 in four digits: \xa0 is a byte.
    assert [name.visible for name in names] == ["a\\u202eb", "\\u00a0", "\\u200b"]


def test_special_tokens_and_those_of_other_tokenizers_are_called_as_in_the_vocabulary(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert visible(tokenizer, "<|endoftext|>") == ["<|endoftext|>"]
    assert [name.text for name in token_names(word_tokenizer({"Ġ": 0}), [0])] == ["Ġ"]


def test_a_token_that_the_vocabulary_lacks_is_called_by_its_number(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    (name,) = token_names(tokenizer, [10_000])
    assert (name.token, name.text) == ("<10000>", "<10000>")


def word_tokenizer(words: dict[str, int]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="Ġ")))
