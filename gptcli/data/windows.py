"""Windows: the parts of a text that a model sees at once, each with the question before it.

    question <end> part of the text <end>

A GPT-2 sees only what stands to the left: the question comes first, so that every token of the text is
read with it in mind. For the same reason it is the last token, which alone has seen everything, that
stands for "no answer here"; the first one, as BERT's models have it, would know nothing.

A text that is too long for one window has several, and neighbours share `stride` tokens, so that an
answer that one of them cuts is whole in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptcli.data.tokenizing import encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIN_CONTEXT_LENGTH = 8
"""Tokens; with fewer, a window has no room for question and text."""


@dataclass(frozen=True)
class Window:
    """A question and a part of its text, as tokens."""

    input_ids: list[int]
    first: int
    """Place in them of the first token of the text."""
    starts: np.ndarray
    """(tokens of the text here,): the character of the text that each begins with."""
    ends: np.ndarray
    """(tokens of the text here,): the character after its last one. Where several tokens make one
    character, each has all of it."""
    can_begin: np.ndarray
    """(tokens of the text here,): whether an answer may begin with it: it is neither white space nor a
    later part of a character."""
    can_end: np.ndarray
    """(tokens of the text here,): whether an answer may end with it, in the same way."""

    @property
    def no_answer(self) -> int:
        """Place of the token that stands for "no answer"."""
        return len(self.input_ids) - 1

    def target(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the places of the first and last token of characters `start` to `end` of the text;
        None if they are not all here."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.starts, end, side="left")) - 1
        if first > last or start < self.starts[first] or end > self.ends[last]:
            return None
        return self.first + first, self.first + last

    def characters(self, first: int, last: int, context: str) -> tuple[int, int]:
        """Return where in the text the tokens at places `first` to `last` lie, without white space."""
        start, end = int(self.starts[first - self.first]), int(self.ends[last - self.first])
        text = context[start:end]
        return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


@dataclass(frozen=True)
class QuestionWindows:
    """The windows of a question, at least one."""

    windows: list[Window]
    question_tokens: int
    is_question_cut: bool
    token_count: int
    """What a single window for all would have."""


def make_windows(
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[tuple[str, str]],
    *,
    context_length: int,
    stride: int,
) -> list[QuestionWindows]:
    """Return the windows of each (question, text), of at most `context_length` tokens.

    stride: tokens that neighbours share; at most half a window is. A question is cut to half the
    context.
    """
    assert context_length >= MIN_CONTEXT_LENGTH
    asked = encode_batch(tokenizer, [question for question, _ in questions])
    # Many questions are about one text.
    texts = list(dict.fromkeys(text for _, text in questions))
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    contexts = {
        text: _Context(text, encoding.ids, encoding.offsets)
        for text, encoding in zip(texts, encodings, strict=True)
    }
    end = tokenizer.eos_token_id
    made = []
    for (_, text), whole in zip(questions, asked, strict=True):
        context = contexts[text]
        question_ids = whole[: context_length // 2]
        room = context_length - len(question_ids) - 2
        step = room - min(stride, room // 2)
        # The last begins where no token would be left that is not in the one before.
        begins = range(0, max(1, len(context.ids) - (room - step)), step)
        windows = [
            context.window([*question_ids, end], slice(begin, begin + room), end) for begin in begins
        ]
        made.append(
            QuestionWindows(
                windows,
                len(whole),
                len(whole) > len(question_ids),
                len(whole) + len(context.ids) + 2,
            )
        )
    return made


class _Context:
    """A text as tokens, with their characters."""

    def __init__(self, text: str, ids: list[int], offsets: list[tuple[int, int]]) -> None:
        self.ids = ids
        self._offsets = np.array(offsets, dtype=np.int32).reshape(-1, 2)
        is_text = np.array([bool(text[start:end].strip()) for start, end in offsets], dtype=bool)
        starts, ends = self._offsets[:, 0], self._offsets[:, 1]
        self._can_begin, self._can_end = is_text.copy(), is_text.copy()
        self._can_begin[1:] &= starts[1:] >= ends[:-1]
        self._can_end[:-1] &= ends[:-1] <= starts[1:]

    def window(self, before: list[int], part: slice, end_of_text: int) -> Window:
        """Return the window of `part` of the tokens, which share their arrays with all others."""
        return Window(
            [*before, *self.ids[part], end_of_text],
            len(before),
            self._offsets[part, 0],
            self._offsets[part, 1],
            self._can_begin[part],
            self._can_end[part],
        )
