from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.evaluation.question_answering import (
    QuestionScores,
    best_threshold,
    exact_match,
    normalize_answer,
    score_answers,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Eiffel\tTower!\n", "eiffel tower"),
        ("an apple, a pear and the plum", "apple pear and plum"),
        ("Another theory", "another theory"),  # Articles are whole words.
        ("A-team", "ateam"),  # Punctuation goes first, and leaves no gap.
        ("the U.S.A.", "usa"),
        ("$1,000.50", "100050"),
        ("“The End”", "“ end”"),  # Only ASCII punctuation goes.
        ("’t café — naïve", "’t café — naïve"),
        ("ÉCOLE", "école"),
        ("l'a été", "la été"),
        ("à la carte", "à la carte"),  # An accent makes another letter.
        ("non\u00a0breaking\u3000spaces", "non breaking spaces"),
        ("東京タワー。", "東京タワー。"),
        ("The.", ""),
        ("", ""),
    ],
)
def test_answers_are_normalized_as_the_published_scripts_do(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("the Normans", ["Normans"], 1, 1),
        ("Normans", ["The Norman people", "normans."], 1, 1),
        # One word of two and of three is common: 2 * 1 / 5.
        ("10th century", ["the early 10th centuries"], 0, 2 / 5),
        # Words are counted as often as both have them: 2 * 2 / (3 + 4).
        ("no no no", ["no, no, yes, yes"], 0, 4 / 7),
        # The best of the answers: 2 * 1 / 3.
        ("France", ["in the south of France", "south France"], 0, 2 / 3),
        ("Spain", ["France"], 0, 0),
        ("", ["France"], 0, 0),
        ("the", ["France"], 0, 0),
    ],
)
def test_an_answer_scores_what_was_worked_by_hand(
    predicted: str, answers: list[str], exact: float, f1: float
) -> None:
    assert exact_match(predicted, answers) == exact
    assert token_f1(predicted, answers) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("predicted", "answers", "score"),
    [
        ("", [], 1),
        (" The! ", [], 1),  # It is empty when normalized.
        ("France", [], 0),
        # Answers that are empty when normalized are no answers beside others, ...
        ("", ["the", "France"], 0),
        ("the", ["the", "France"], 0),
        # ... and alone they ask for nothing.
        ("", ["the", "..."], 1),
        ("a", ["the"], 1),
        ("France", ["the"], 0),
    ],
)
def test_empty_answers_score_as_in_the_v2_script(
    predicted: str, answers: list[str], score: float
) -> None:
    assert exact_match(predicted, answers) == score
    assert token_f1(predicted, answers) == score


def test_scores_are_means_in_percent_of_all_questions_and_of_each_kind() -> None:
    scores = score_answers(
        {"right": "the Normans", "half": "10th century", "left": "", "guessed": "Paris"},
        {"right": ["Normans"], "half": ["10th", "9th"], "left": [], "guessed": []},
    )
    assert (scores.exact_match, scores.count) == (50, 4)
    assert scores.f1 == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)
    assert scores.has_answer is not None
    assert (scores.has_answer.exact_match, scores.has_answer.count) == (50, 2)
    assert scores.has_answer.f1 == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert scores.no_answer == QuestionScores(50, 50, 2)
    assert (scores.missing, scores.unknown) == (0, 0)
    assert scores.as_dict()["no_answer"] == {"exact_match": 50, "f1": 50, "count": 2}
    assert json.loads(json.dumps(scores.as_dict(), allow_nan=False)) == scores.as_dict()


@pytest.mark.parametrize("answers", [["yes"], []])
def test_questions_of_one_kind_are_not_told_apart(answers: list[str]) -> None:
    scores = score_answers({"1": "yes"}, {"1": answers})
    assert (scores.has_answer, scores.no_answer) == (None, None)
    assert list(scores.as_dict()) == ["exact_match", "f1", "count", "missing", "unknown"]


def test_a_missing_prediction_is_wrong_and_an_unknown_one_counts_for_nothing() -> None:
    answers: dict[str, list[str]] = {"1": ["yes"], "2": ["no"], "3": [], "4": []}
    scores = score_answers({"1": "yes", "3": "", "5": "", "6": "no"}, answers)
    assert (scores.exact_match, scores.f1, scores.count) == (50, 50, 4)
    assert (scores.missing, scores.unknown) == (2, 2)
    assert scores.no_answer == QuestionScores(50, 50, 2)


@pytest.mark.parametrize(
    ("file", "exact", "f1", "missing"),
    [("bert_ensemble", 86.21, 92.20, 0), ("logistic", 40.14, 50.98, 13)],
)
def test_published_predictions_get_their_published_scores(
    shared_data: Path, file: str, exact: float, f1: float, missing: int
) -> None:
    folder = shared_data / "question-answering"
    answers = squad_answers(json.loads((folder / "dev-v1.1.rebuilt.json").read_text("utf-8")))
    predictions = json.loads((folder / f"predictions_{file}.json").read_text("utf-8"))
    scores = score_answers(predictions, answers)
    assert (scores.count, scores.missing) == (10_570, missing)
    assert round(scores.exact_match, 2) == exact
    assert round(scores.f1, 2) == f1


def squad_answers(dataset: Any) -> dict[str, list[str]]:
    """Return the acceptable answers by question id."""
    return {
        question["id"]: [answer["text"] for answer in question["answers"]]
        for article in dataset["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }


def threshold_of(
    margins: list[float], scores: list[float], is_answerable: list[bool]
) -> tuple[float, float]:
    return best_threshold(np.array(margins), np.array(scores), np.array(is_answerable))


def test_the_best_threshold_lies_midway_between_what_is_answered_and_what_is_not() -> None:
    # Answered rightly, half, wrongly, and an unanswerable one that is best left.
    threshold, mean = threshold_of([-3, 1, 2, 6], [1, 0.5, 0, 0], [True, True, True, False])
    assert threshold == 1.5  # The lowest: 4, which also answers the wrong one, is as good.
    assert mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)


def test_beyond_the_first_and_the_last_margin_the_threshold_is_1_further() -> None:
    assert threshold_of([2, 5], [1, 1], [True, True]) == (6, 1)
    assert threshold_of([2, 5], [0, 0], [False, False]) == (1, 1)
    # Nothing is gained by answering: nothing is answered.
    assert threshold_of([2, 5], [0, 0], [True, True]) == (1, 0)


def test_questions_with_equal_margins_are_answered_together_or_not_at_all() -> None:
    # Alone, the first would be answered: but with it come two that are better left.
    threshold, mean = threshold_of([1, 1, 1, 9], [1, 0, 0, 0], [True, False, False, True])
    assert threshold == 0
    assert mean == pytest.approx(2 / 4)


def test_an_unanswerable_question_may_be_answered_with_nothing() -> None:
    # The best answer was "", which is right: whether it is given does not matter.
    assert threshold_of([1, 2], [1, 1], [False, True]) == (3, 1)


def test_sums_that_differ_by_a_rounding_are_equal() -> None:
    # 0.1 + 0.8 - 1 + 0.1 is 2.8e-17 among floats: answering none is as good as answering all.
    threshold, mean = threshold_of([1, 1, 1, 1], [0.1, 0.8, 0, 0.1], [True, True, False, True])
    assert threshold == 0
    assert mean == pytest.approx(0.25)


@pytest.mark.parametrize("margin", [1.5e308, -1e300, 1.0, 1.0 + 2**-52, 0.0])
def test_margins_that_are_neighbours_among_floats_are_told_apart(margin: float) -> None:
    above = float(np.nextafter(margin, np.inf))
    threshold, mean = threshold_of([margin, above], [1, 0], [True, False])
    assert margin <= threshold < above
    assert mean == 1
    threshold, mean = threshold_of([margin, above], [0, 0], [False, False])
    assert np.isfinite(threshold)
    assert threshold < margin
    assert mean == 1


FEW = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0])
QUESTIONS = st.lists(
    st.tuples(
        FEW | st.floats(-1e6, 1e6),  # margin
        st.sampled_from([0.0, 1 / 3, 0.4, 2 / 3, 0.8, 1.0]),  # score
        st.booleans(),  # answerable
    ),
    min_size=1,
    max_size=12,
)


@given(QUESTIONS)
def test_no_other_threshold_is_better_nor_a_lower_one_as_good(
    questions: list[tuple[float, float, bool]],
) -> None:
    def mean_with(threshold: float) -> float:
        return sum(
            score if margin <= threshold else float(not is_answerable)
            for margin, score, is_answerable in questions
        ) / len(questions)

    margins = [margin for margin, _, _ in questions]
    threshold, mean = threshold_of(*map(list, zip(*questions, strict=True)))
    assert np.isfinite(threshold)
    assert mean == pytest.approx(mean_with(threshold))
    # What is answered changes at a margin only.
    for other in (min(margins) - 1, *margins):
        assert mean_with(other) <= mean + 1e-9
        if {m for m in margins if m <= other} < {m for m in margins if m <= threshold}:
            assert mean_with(other) < mean - 1e-12


@given(QUESTIONS, st.randoms())
def test_the_order_of_questions_does_not_change_the_threshold(
    questions: list[tuple[float, float, bool]], random: Any
) -> None:
    shuffled = random.sample(questions, len(questions))
    first, second = (threshold_of(*map(list, zip(*rows, strict=True))) for rows in (questions, shuffled))
    assert first == pytest.approx(second, rel=1e-12)
