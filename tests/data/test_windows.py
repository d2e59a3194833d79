"""Windows: every token of a text is in one, and characters and tokens are told from each other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from gptcli.data.tokenizing import load_tokenizer
from gptcli.data.windows import QuestionWindows, Window, make_windows
from tests.conftest import TEXT

ODD = "A 🦉 of 深圳 said\u00a0é, e\u0301 and\n\n👩‍👩‍👧 नमस्ते."


def windows_of(
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    context: str,
    context_length: int = 32,
    stride: int = 4,
) -> QuestionWindows:
    (made,) = make_windows(
        tokenizer, [(question, context)], context_length=context_length, stride=stride
    )
    return made


def text_ids(window: Window) -> list[int]:
    return window.input_ids[window.first : window.no_answer]


def test_a_window_is_the_question_and_the_text_each_with_its_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    question, text, end = tokenizer.encode("Who?"), tokenizer.encode("The cat"), tokenizer.eos_token_id
    (window,) = windows_of(tokenizer, "Who?", "The cat").windows
    assert window.input_ids == [*question, end, *text, end]
    assert (window.first, window.no_answer) == (len(question) + 1, len(window.input_ids) - 1)


@pytest.mark.parametrize("tokens", [*range(20, 32), 100, 101, 102, 103, 104])
@pytest.mark.parametrize("stride", [0, 4, 13, 1000])
def test_windows_cover_the_text_and_neighbours_share_the_stride(
    tokenizer: PreTrainedTokenizerFast, tokens: int, stride: int
) -> None:
    context = tokenizer.decode(tokenizer.encode(TEXT)[:tokens])
    ids = tokenizer.encode(context)
    made = windows_of(tokenizer, "ow", context, stride=stride)
    room = 32 - made.question_tokens - 2
    parts = [text_ids(window) for window in made.windows]
    shared = min(stride, room // 2)
    whole = parts[0]
    for before, part in pairwise(parts):
        assert len(before) == room
        assert before[len(before) - shared :] == part[:shared]
        assert len(part) > shared  # Each has something new.
        whole = [*whole, *part[shared:]]
    assert whole == ids
    assert made.token_count == made.question_tokens + len(ids) + 2


def test_a_long_question_is_cut_to_half_the_context(tokenizer: PreTrainedTokenizerFast) -> None:
    made = windows_of(tokenizer, TEXT, "The cat")
    assert made.is_question_cut
    assert made.windows[0].first == 17
    assert made.question_tokens == len(tokenizer.encode(TEXT))
    assert not windows_of(tokenizer, "Who?", TEXT).is_question_cut


def gpt2_tokenizer(shared_data: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(str(shared_data / "gpt2-tokenizer"))


@pytest.mark.parametrize("which", ["own", "gpt2"])
@pytest.mark.parametrize("context", [TEXT[:200], ODD])
def test_every_part_of_a_text_comes_back_from_its_tokens(
    tokenizer: PreTrainedTokenizerFast, which: str, context: str, request: pytest.FixtureRequest
) -> None:
    if which == "gpt2":
        tokenizer = gpt2_tokenizer(request.getfixturevalue("shared_data"))
    (window,) = windows_of(tokenizer, "Who?", context, context_length=1000).windows
    for start in range(len(context)):
        for end in range(start + 1, min(len(context), start + 30) + 1):
            answer = context[start:end]
            if answer != answer.strip():
                continue
            target = window.target(start, end)
            assert target is not None
            found = context[slice(*window.characters(*target, context))]
            # A token may have more of a word than was asked for, but never white space at the ends.
            assert answer in found and found == found.strip()


def test_an_answer_at_the_edge_is_whole_in_one_window_only(tokenizer: PreTrainedTokenizerFast) -> None:
    made = windows_of(tokenizer, "ow", TEXT, stride=4)
    first, second = made.windows[:2]
    # The last token of the first window, and the token after it, which the first has not.
    start, end = int(first.starts[-1]), int(first.ends[-1])
    assert first.target(start, end) == (first.no_answer - 1, first.no_answer - 1)
    assert second.target(start, end) == (second.first + 3, second.first + 3)
    beyond = int(second.ends[4])
    assert first.target(start, beyond) is None
    assert second.target(start, beyond) == (second.first + 3, second.first + 4)
    # The very first and the very last character.
    assert first.target(0, 3) == (first.first, first.first)
    length = len(TEXT)
    last = made.windows[-1]
    assert last.target(length - 1, length) == (last.no_answer - 1, last.no_answer - 1)


def test_answers_begin_and_end_with_whole_characters_that_are_no_white_space(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    context = "The \n 🦉 cat\u3000"
    (window,) = windows_of(tokenizer, "Who?", context).windows
    texts = [context[a:b] for a, b in zip(window.starts, window.ends, strict=True)]
    # The owl is four tokens, each with all of it.
    owl = texts.index("🦉")
    assert texts[owl : owl + 4] == ["🦉"] * 4
    begins = [text for text, can in zip(texts, window.can_begin, strict=True) if can]
    ends = [text for text, can in zip(texts, window.can_end, strict=True) if can]
    assert [text.strip() for text in begins] == [text.strip() for text in ends] == ["The", "🦉", "cat"]
    assert window.can_begin[owl] and window.can_end[owl + 3]
    assert window.target(6, 7) == (window.first + owl, window.first + owl + 3)
