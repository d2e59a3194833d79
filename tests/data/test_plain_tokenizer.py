"""A plain GPT-2 tokenizer does what transformers' does; any other is left to transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gptcli.data.plain_tokenizer import plain_tokenizer

TEXTS = [
    "",
    "The small cat sat on the mat.",
    "  two  spaces\n\n\tand a tab ",
    "It's 10,000 屋根 🦉 é\u0301.",
    "a<|endoftext|>b <|endoftext|>",
    "\0 \u00a0\u202e",
]


@pytest.fixture
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def assert_does_the_same(folder: Path) -> None:
    ours, theirs = plain_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    assert ours.eos_token_id == theirs.eos_token_id
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special_tokens=False) == ids
        for skips in (False, True):
            expected = theirs.decode(ids, skip_special_tokens=skips)
            assert ours.decode(ids, skip_special_tokens=skips) == expected


def test_it_encodes_and_decodes_as_transformers_does(folder: Path) -> None:
    assert_does_the_same(folder)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"])
def test_whatever_class_it_was_saved_by(folder: Path, name: str) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    assert_does_the_same(folder)


def test_as_older_versions_of_transformers_have_saved_it(folder: Path) -> None:
    token = {"content": "<|endoftext|>", "lstrip": False, "rstrip": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": token, "eos_token": token | {"normalized": True}})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_prefix_space": False,
                "added_tokens_decoder": {"0": token | {"normalized": True, "special": True}},
                "clean_up_tokenization_spaces": True,
                "eos_token": "<|endoftext|>",
                "model_max_length": 1024,
                "tokenizer_class": "GPT2Tokenizer",
            }
        )
    )
    assert_does_the_same(folder)


def test_what_a_saved_tokenizer_cuts_and_pads_is_neither_cut_nor_padded(folder: Path) -> None:
    saved = AutoTokenizer.from_pretrained(folder)
    expected = saved.encode(TEXTS[1], add_special_tokens=False)
    saved.backend_tokenizer.enable_truncation(2)
    saved.backend_tokenizer.enable_padding(length=100)
    saved.backend_tokenizer.save(str(folder / "tokenizer.json"))
    ours = plain_tokenizer(folder)
    assert ours is not None
    assert ours.encode(TEXTS[1], add_special_tokens=False) == expected


@pytest.mark.parametrize(
    "facts",
    [
        {"add_prefix_space": True},
        {"split_special_tokens": True},
        {"extra_special_tokens": ["<|user|>"]},
        {"additional_special_tokens": ["<|user|>"]},
        {"pad_token": "<|pad|>"},
        {"eos_token": "<|end|>"},
        {"eos_token": None},
        {"eos_token": {"content": "<|endoftext|>", "lstrip": True}},
        {"added_tokens_decoder": {"5": {"content": "sat", "special": False}}},
        {"tokenizer_class": "GPTNeoXJapaneseTokenizer"},
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
        {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True},
    ],
)
def test_what_may_change_texts_is_left_to_transformers(folder: Path, facts: dict[str, Any]) -> None:
    assert plain_tokenizer(folder) is not None
    change(folder / "tokenizer_config.json", **facts)
    assert plain_tokenizer(folder) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("decoder", {"type": "Fuse"}),
        ("added_tokens", []),
    ],
)
def test_other_rules_are_left_to_transformers(folder: Path, key: str, value: Any) -> None:
    change(folder / "tokenizer.json", **{key: value})
    assert plain_tokenizer(folder) is None


@pytest.mark.parametrize(
    "facts", [{"dropout": 0.5}, {"unk_token": "<|endoftext|>"}, {"byte_fallback": True}]
)
def test_other_ways_to_merge_are_left_to_transformers(folder: Path, facts: dict[str, Any]) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change(folder / "tokenizer.json", model=model | facts)
    assert plain_tokenizer(folder) is None


def test_more_added_tokens_are_left_to_transformers(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["catdog"])
    shutil.copy(folder / "tokenizer_config.json", folder / "before.json")
    tokenizer.save_pretrained(folder)
    shutil.move(folder / "before.json", folder / "tokenizer_config.json")
    assert plain_tokenizer(folder) is None


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["{", "[]", "[1]", "null"])
def test_what_cannot_be_read_is_left_to_transformers(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    assert plain_tokenizer(folder) is None
