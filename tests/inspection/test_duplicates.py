"""Repeated texts are counted, and nearly equal ones are told from others, as far as is promised."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gptcli.inspection import duplicates
from gptcli.inspection.duplicates import Copies, NearCopies, Repeats, copies_findings, near_findings

# 20 words: 18 runs of three.
WORDS = [*"abcdefghijklmnopqrst"]


def near(*texts: str) -> Repeats:
    copies = NearCopies()
    for number, text in enumerate(texts, 1):
        copies.add(text, f"row {number}")
    return copies.result()


def with_other_words(*places: int) -> str:
    return " ".join("other" if place in places else word for place, word in enumerate(WORDS))


def test_copies_are_counted_with_the_first_of_them() -> None:
    copies = Copies()
    added = [copies.add(text, f"row {n}") for n, text in enumerate(["a", "bcd", "a", "e", "bcd", "a"])]
    assert added == [False, False, True, False, True, True]
    # Of 1 + 3 + 1 + 1 + 3 + 1 characters, 1 + 3 + 1 are in copies.
    assert copies.result() == Repeats(6, 3, 10, 5, "row 2", "row 0")
    assert Copies().result() == Repeats(0, 0, 0, 0, None, None)


def test_passages_of_one_row_can_be_copies_of_each_other() -> None:
    copies, row = Copies(), "row 1"
    assert [copies.add("a", row), copies.add("a", row)] == [False, True]
    assert copies.result().where == copies.result().earlier == row


@pytest.mark.parametrize(
    ("text", "common"),
    [
        (with_other_words(10), 15),
        (with_other_words(0), 17),
        (" ".join(WORDS).upper() + "!", 18),
    ],
)
def test_texts_are_near_if_most_of_their_runs_of_three_words_are_the_same(
    text: str, common: int
) -> None:
    # Of 18 and 18 runs, those that both have count once.
    found = near(" ".join(WORDS), "something else that is here, too", text)
    assert found.likeness == round(common / (36 - common), 4)
    assert (found.texts, found.repeated, found.where, found.earlier) == (3, 1, "row 3", "row 1")
    assert found.repeated_characters == len(text)


def test_texts_that_share_fewer_runs_are_not_near() -> None:
    # Two other words leave 12 of 18 runs, 12/24; other words at both ends 16, 16/20.
    assert near(" ".join(WORDS), with_other_words(5, 14)).repeated == 0
    assert near(" ".join(WORDS), with_other_words(0, 19)).repeated == 1
    assert near(" ".join(WORDS), " ".join(reversed(WORDS))).repeated == 0


def test_equal_texts_are_no_near_copies_and_short_ones_are_not_compared() -> None:
    text = " ".join(WORDS)
    assert near(text, text, text).texts == 1
    assert near("one two three four", "one two three four!").texts == 0
    assert near("one two three four five", "one two three four five!").repeated == 1
    assert near() == Repeats(0, 0, 0, 0, None, None)


def test_a_text_that_is_there_a_thousand_times_with_small_changes_is_found_each_time() -> None:
    texts = [f"{' '.join(WORDS)} {' '.join(WORDS[:9])} number {n}" for n in range(1000)]
    assert near(*texts).repeated == 999


def exact(texts: list[str]) -> int:
    """Count by comparing each with each, without a hash."""
    runs = [{tuple(t.split()[i : i + 3]) for i in range(len(t.split()) - 2)} for t in texts]
    return sum(
        any(len(runs[j] & runs[i]) / len(runs[j] | runs[i]) >= 0.7 for j in range(i))
        for i in range(len(texts))
    )


def test_of_texts_drawn_at_random_as_many_are_near_as_by_comparing_all_pairs() -> None:
    draw = random.Random(0)
    texts: list[str] = []
    for _ in range(300):
        if texts and draw.random() < 0.5:
            words = draw.choice(texts).split()
            for _ in range(draw.randrange(1, 4)):
                words[draw.randrange(len(words))] = f"w{draw.randrange(1000)}"
        else:
            words = [f"w{draw.randrange(1000)}" for _ in range(draw.randrange(8, 60))]
        texts.append(" ".join(words))
    found = near(*texts).repeated
    assert exact(texts) > 50
    # Some of the least near may be missed; none is found wrongly.
    assert 0.95 * exact(texts) <= found <= exact(texts)


def test_pairs_that_are_compared_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{' '.join(WORDS)} {n} {n // 2}" for n in range(50)]
    whole = near(*texts)
    monkeypatch.setattr(duplicates, "_AT_ONCE", 16)
    assert near(*texts) == whole
    assert whole.repeated == 49


def test_what_is_behind_the_limit_is_said_not_to_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_WORDS", 30)
    found = near(" ".join(WORDS), with_other_words(3), with_other_words(4), with_other_words(5))
    assert (found.texts, found.repeated, found.not_compared) == (2, 1, 2)
    (finding,) = near_findings(found, "texts")
    assert "; 2 more, behind them, were not compared" in finding.message


def test_a_hundredth_of_the_text_is_nothing_to_warn_of() -> None:
    for characters, level in ((0, "ok"), (10, "ok"), (30, "warning")):
        (finding,) = copies_findings(Repeats(100, 2, 1000, characters, "b:2", "a:1"), "examples")
        assert finding.level == level
    assert finding.message == "2 of 100 examples (2.0%) repeat an earlier one, 3.0% of the text"
    assert finding.where == "b:2 as a:1"
    (finding,) = copies_findings(Repeats(2, 1, 2, 1, "a.json: item 2", "a.json: item 1"), "examples")
    assert finding.where == "a.json: item 2 as item 1"


def test_minima_agree_as_often_as_runs_are_shared() -> None:
    # 700 of 1,000 runs are in both texts: a band of five minima agrees with a probability of 0.7 ** 5.
    random_runs = np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64)
    runs = np.concatenate([random_runs[:850], random_runs[150:]])
    counts = np.array([850, 850])
    salts = np.random.default_rng(1)
    agreed = 0
    for _ in range(2000):
        first, second = duplicates._band_keys(runs, counts, salts)
        agreed += first == second
    # Its standard deviation is 17.
    assert abs(agreed - 2000 * 0.7**5) < 60
