"""An example is shown as the batch has it: what is learnt of it, and what is only read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptcli.data.batches import IGNORED, Batch
from gptcli.inspection.rendering import (
    Part,
    RenderedExample,
    render_labels,
    render_places,
    render_tokens,
)


def decode(ids: Sequence[int]) -> str:
    return "".join("abcdefgh"[number] for number in ids)


def batch(input_ids: list[list[int]], lengths: list[int], targets: object, by_token: bool) -> Batch:
    return Batch(np.array(input_ids), np.array(lengths), np.array(targets), by_token)


def test_tokens_are_learnt_where_they_are_targets() -> None:
    ignored = IGNORED
    some = batch(
        [[0, 1, 2, 0], [0, 1, 2, 3], [0, 1, 2, 3]],
        [3, 4, 4],
        [[1, 2, 3, ignored], [ignored, ignored, 3, 4], [ignored, 2, 3, ignored]],
        True,
    )
    # The first token is predicted from nothing; the target of the last one stands behind it.
    assert render_tokens(some, 0, decode).parts == [Part("a", False), Part("bcd", True)]
    assert render_tokens(some, 1, decode).parts == [Part("abc", False), Part("de", True)]
    assert render_tokens(some, 2, decode).parts == [Part("ab", False), Part("cd", True)]


def test_an_answer_is_learnt_from_its_first_token_to_its_last() -> None:
    some = batch([[0, 1, 2, 3], [0, 1, 2, 0]], [4, 3], [[1, 2], [2, 2]], False)
    assert render_places(some, 0, decode).parts == [Part("a", False), Part("bc", True), Part("d", False)]
    # "No answer here" is the last token, before the padding.
    assert render_places(some, 1, decode).parts == [Part("ab", False), Part("c", True)]


def test_a_label_stands_behind_its_text() -> None:
    names = ["ham", "spam"]
    one = batch([[0, 1, 0]], [2], [1], False)
    assert render_labels(one, 0, decode, names).parts == [Part("ab -> ", False), Part("spam", True)]
    several = batch([[0, 1], [2, 3]], [2, 2], [[True, True], [False, False]], False)
    assert render_labels(several, 0, decode, names).parts[-1] == Part("ham, spam", True)
    assert render_labels(several, 1, decode, names).parts[-1] == Part("no label", True)
    number = batch([[0, 1]], [2], [3.5], False)
    assert render_labels(number, 0, decode, None).parts[-1] == Part("3.5", True)


def test_of_a_long_part_the_middle_is_left_out() -> None:
    example = RenderedExample([Part("a" * 50 + "b" * 50, False), Part("short", True)])
    assert example.shortened(27) == [Part("a" * 10 + " [...] " + "b" * 10, False), Part("short", True)]
    assert example.shortened(100) == example.parts
