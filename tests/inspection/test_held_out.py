"""How much the held-out part can tell, and what of it is known from the training text."""

from __future__ import annotations

import pytest

from gptcli.evaluation.overlap import ItemGrams
from gptcli.inspection.held_out import Overlap, overlap_findings, size_findings


@pytest.mark.parametrize(
    ("examples", "tokens", "level"),
    [
        (None, 0, "warning"),
        (None, 4999, "warning"),
        (None, 5000, "ok"),
        (0, 0, "warning"),
        (99, 500, "warning"),
        (100, 500, "ok"),
    ],
)
def test_too_little_is_a_warning(examples: int | None, tokens: int, level: str) -> None:
    (finding,) = size_findings(examples, tokens)
    assert finding.level == level


def test_how_exactly_a_share_is_known_is_said() -> None:
    # Of 400, the standard error of one half is 2.5 points; twice that are 5.
    (finding,) = size_findings(400, 1000)
    assert finding.message == "400 examples are held out: a share of them is known to 5.0 points"


def overlap_of(items: dict[str, str], *training: str, equal: int = 0) -> Overlap:
    grams = ItemGrams(items)
    grams.look_in((text, True) for text in training)
    return Overlap.of(grams.result(), items, equal)


def test_what_is_known_is_counted_with_its_characters_and_one_place() -> None:
    items = {"short": "row 1", "one two three four five": "row 2", "a b c d e f": "row 3"}
    overlap = overlap_of(items, "we say a b c d e f today")
    assert overlap == Overlap(3, 1, 1, 5 + 23 + 11, 11, 0, "row 3")
    (finding,) = overlap_findings(overlap, "texts")
    assert finding.message == (
        "1 of 2 held-out texts, 28.2% of their text, stand in the training text (half or more of their "
        "runs of 13 words)"
    )
    assert (finding.level, finding.where) == ("problem", "row 3")


def test_what_is_known_to_less_than_a_half_is_not_known() -> None:
    words = [*"abcdefghijklmnop"]
    # Of four runs of 13 words, the training text has the first, and then the first two.
    assert overlap_of({" ".join(words): "row 1"}, " ".join(words[:13])).known == 0
    assert overlap_of({" ".join(words): "row 1"}, " ".join(words[:14])).known == 1


@pytest.mark.parametrize(
    ("known", "equal", "level"),
    [
        (0, 0, "ok"),
        (10, 0, "ok"),
        (11, 0, "warning"),
        (100, 0, "warning"),
        (101, 0, "problem"),
        (0, 1, "problem"),
    ],
)
def test_over_a_thousandth_is_a_warning_and_over_a_hundredth_a_problem(
    known: int, equal: int, level: str
) -> None:
    overlap = Overlap(50, 0, int(known > 0), 10_000, known, equal, None)
    (finding,) = overlap_findings(overlap, "texts")
    assert finding.level == level
