from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.evaluation.bootstrap import Measured
from gptcli.evaluation.question_answering import (
    QuestionScores,
    best_threshold,
    exact_match,
    measure_answers,
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


@pytest.mark.parametrize(
    ("predicted", "answer", "exact", "f1"),
    [
        # Chinese. Three characters of four and of three: 2 * 3 / 7.
        ("在北京市", "北京市", 0, 6 / 7),
        # The longest run counts, here two characters: 2 * 2 / 8. What is in another order does not.
        ("北京、上海", "上海，北京", 0, 1 / 2),
        ("“二〇一八年。”", "二〇一八 年", 1, 1),
        ("《红楼梦》", "红楼梦", 1, 1),
        ("上海", "北京", 0, 0),
        # Japanese: 2 * 3 / (3 + 5), 2 * 4 / (7 + 4).
        ("タワー", "東京タワー", 0, 3 / 4),
        ("「日本の首都」です。", "日本首都", 0, 4 / 11),
        ("ジョン・スミス", "ジョンスミス", 1, 1),
        # Thai, with its vowel signs: seven characters of seven and of thirteen.
        ("กรุงเทพ", "กรุงเทพมหานคร", 0, 14 / 20),
        ("กรุงเทพ ฯ", "กรุงเทพฯ", 1, 1),
        # A zero-width space, between words of Khmer.
        ("ភ្នំ\u200bពេញ", "ភ្នំពេញ", 1, 1),
        # Other runs are words: [iphone 12 手 机] and [apple iphone 手 机], [u2 的 歌] and [u2 歌].
        ("iPhone 12手机", "Apple iPhone 手机", 0, 1 / 2),
        ("U2的歌", "u2 歌", 0, 2 / 5),
        # Articles stay: [the who 组 织] and [who 组 织].
        ("The WHO组织", "who 组织", 0, 6 / 7),
        ("U.S.A. + 中国", "usa中国", 1, 1),
        # Spaces are no difference, though the words are not the same: F1 is 1 with the exact match.
        ("New York市", "NewYork市", 1, 1),
        # East Asian punctuation and full-width forms tell the script of what has no character of it.
        ("308。", "308", 1, 1),
        ("63％", "63%", 1, 1),
        ("Flung to the Heedless Winds。", "Flung to the Heedless Winds", 1, 1),
        # "⑴" is the number one, though Unicode would also write it "(1)".
        ("⑴年", "年", 0, 2 / 3),
    ],
)
def test_an_answer_in_a_script_without_spaces_scores_what_was_worked_by_hand(
    predicted: str, answer: str, exact: float, f1: float
) -> None:
    for one, other in ((predicted, answer), (answer, predicted)):
        assert exact_match(one, [other]) == exact
        assert token_f1(one, [other]) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("predicted", "answer", "exact", "f1"),
    [
        # Arabic, Hindi, Korean: 2 * 2 / 5, 2 * 1 / 3, 2 * 1 / 3.
        ("في عام 1945", "عام 1945", 0, 4 / 5),
        ("नई दिल्ली", "दिल्ली", 0, 2 / 3),
        ("서울 특별시", "서울", 0, 2 / 3),
        # Words count in any order.
        ("1945 عام", "عام 1945", 0, 1),
        ("दिल्ली नई", "नई दिल्ली", 0, 1),
        # Only ASCII punctuation goes.
        ("(القاهرة)", "القاهرة", 1, 1),
        ("القاهرة،", "القاهرة", 0, 0),
        ("दिल्ली।", "दिल्ली", 0, 0),
        ("「춘향전」", "춘향전", 0, 0),
        ("฿500", "500", 0, 0),
    ],
)
def test_an_answer_in_another_script_with_spaces_scores_as_in_the_squad_script(
    predicted: str, answer: str, exact: float, f1: float
) -> None:
    assert exact_match(predicted, [answer]) == exact
    assert token_f1(predicted, [answer]) == pytest.approx(f1)


def test_each_acceptable_answer_is_compared_by_the_rule_for_its_script() -> None:
    # Without the article, one word of two: 2 * 1 / 3. With it, as beside "北京", it would be of three.
    assert token_f1("Beijing, the city", ["北京", "Beijing"]) == pytest.approx(2 / 3)
    assert exact_match("北京。", ["Beijing", "北京"]) == 1
    assert token_f1("北京市", ["Beijing", "北京"]) == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("predicted", "answers", "score"),
    [
        ("", [], 1),
        ("北京", [], 0),
        ("。", [], 1),
        ("", ["。", "北京"], 0),
        ("？", ["。"], 1),
        ("北京", ["。"], 0),
    ],
)
def test_answers_of_nothing_but_east_asian_punctuation_are_empty(
    predicted: str, answers: list[str], score: float
) -> None:
    assert exact_match(predicted, answers) == score
    assert token_f1(predicted, answers) == score


def test_all_letters_of_scripts_without_spaces_and_no_others_are_tokens_of_their_own() -> None:
    without_spaces = re.compile(
        r"(CJK (UNIFIED|COMPATIBILITY) IDEOGRAPH|(HIRA|HENTAI)GANA|(HALFWIDTH )?KATAKANA"
        r"|THAI|LAO|KHMER|MYANMAR)\b"
    )
    letters = [
        letter
        for letter in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(letter) in {"Lo", "Mc", "Nd"}
    ]
    named = {letter for letter in letters if without_spaces.match(unicodedata.name(letter, ""))}
    # Of a letter that is written twice and one written once: 2 * 1 / 3, if each is a token.
    alone = {letter for letter in letters if token_f1(letter * 2, [letter]) > 0}
    assert len(named) > 90_000
    assert {unicodedata.name(letter) for letter in alone - named} == {
        "IDEOGRAPHIC CLOSING MARK",
        "MASU MARK",
    }
    assert named <= alone


PUNCTUATION = ",.。、+～·"
CHARACTERS = "北京ひカー๓ไ"
MIXED_TEXT = st.text(PUNCTUATION + CHARACTERS + "abAB1 \n", max_size=12)


def cmrc_tokens(text: str) -> list[str]:
    tokens, word = [], ""
    for character in text.lower():
        if character in CHARACTERS:
            tokens += [*word.split(), character]
            word = ""
        elif character not in PUNCTUATION:
            word += character
    return tokens + word.split()


def longest_common_substring(first: list[str], second: list[str]) -> int:
    """By the table that textbooks fill: length of the run that ends at both places."""
    lengths = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            if one == other:
                lengths[i + 1][j + 1] = lengths[i][j] + 1
    return max(map(max, lengths))


@given(MIXED_TEXT, MIXED_TEXT, st.sampled_from(CHARACTERS))
def test_mixed_text_scores_as_by_the_rule_of_cmrc(predicted: str, answer: str, character: str) -> None:
    answer += character
    tokens, right = cmrc_tokens(predicted), cmrc_tokens(answer)
    common = longest_common_substring(tokens, right)
    f1 = 0.0
    if common:
        precision, recall = common / len(tokens), common / len(right)
        f1 = 2 * precision * recall / (precision + recall)
    exact = "".join(tokens) == "".join(right)
    assert exact_match(predicted, [answer]) == exact
    assert token_f1(predicted, [answer]) == pytest.approx(1 if exact else f1)


@given(MIXED_TEXT, st.lists(MIXED_TEXT, max_size=3))
def test_an_exact_match_has_an_f1_of_1_and_no_score_leaves_0_to_1(
    predicted: str, answers: list[str]
) -> None:
    assert 0 <= exact_match(predicted, answers) <= token_f1(predicted, answers) <= 1


@pytest.mark.parametrize("language", ["zh", "ar", "hi", "en"])
def test_predictions_that_are_the_answers_score_100(shared_data: Path, language: str) -> None:
    file = shared_data / "question-answering" / f"xquad.{language}.json"
    answers = squad_answers(json.loads(file.read_text("utf-8")))
    endings = ("", "。") if language == "zh" else ("", ".")
    for ending in endings:
        scores = score_answers({name: texts[0] + ending for name, texts in answers.items()}, answers)
        assert (scores.exact_match, scores.f1, scores.count) == (100, 100, 1190)


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


def test_each_question_is_measured_in_the_order_of_the_answers() -> None:
    measured = measure_answers(
        {"left": "", "half": "10th century", "guessed": "Paris", "right": "the Normans", "other": "?"},
        {"right": ["Normans"], "half": ["10th", "9th"], "missing": ["1066"], "left": [], "guessed": []},
    )
    # Exact match, F1 and 1 of what can be answered; then of what cannot.
    assert measured.items.tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, pytest.approx(2 / 3), 1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0, 1],
    ]
    assert measured.unit == "questions"
    assert values_of(measured, range(5)) == {
        "exact_match": 100 * 2 / 5,
        "f1": pytest.approx(100 * (1 + 2 / 3 + 1) / 5),
        "exact_match_has_answer": pytest.approx(100 / 3),
        "f1_has_answer": pytest.approx(100 * (1 + 2 / 3) / 3),
        "exact_match_no_answer": 50,
    }


@pytest.mark.parametrize("answers", [["yes"], []])
def test_of_questions_of_one_kind_two_metrics_are_measured(answers: list[str]) -> None:
    measured = measure_answers({"1": "yes"}, {"1": answers, "2": answers})
    score = 50 if answers else 0
    assert values_of(measured, range(2)) == {"exact_match": score, "f1": score}


@given(
    st.lists(
        st.tuples(MIXED_TEXT | st.none(), st.lists(MIXED_TEXT, max_size=2)), min_size=1, max_size=6
    ),
    st.data(),
)
def test_the_measured_sums_of_any_questions_give_their_scores(
    questions: list[tuple[str | None, list[str]]], data: st.DataObject
) -> None:
    predictions = {str(n): text for n, (text, _) in enumerate(questions) if text is not None}
    answers = {str(n): texts for n, (_, texts) in enumerate(questions)}
    measured = measure_answers(predictions, answers)
    some = data.draw(st.lists(st.integers(0, len(questions) - 1), min_size=1, unique=True))
    scores = score_answers(predictions, {str(n): answers[str(n)] for n in some})
    values = values_of(measured, some)
    assert values["exact_match"] == pytest.approx(scores.exact_match)
    assert values["f1"] == pytest.approx(scores.f1)
    if scores.has_answer is not None and scores.no_answer is not None:
        assert values["exact_match_has_answer"] == pytest.approx(scores.has_answer.exact_match)
        assert values["f1_has_answer"] == pytest.approx(scores.has_answer.f1)
        assert values["exact_match_no_answer"] == pytest.approx(scores.no_answer.exact_match)


def values_of(measured: Measured, rows: Iterable[int]) -> dict[str, float]:
    """Return the metrics of some items by name, NaN where undefined."""
    sums = measured.items[list(rows)].sum(0, keepdims=True)
    with np.errstate(invalid="ignore"):
        return {metric.name: float(metric.of_sums(sums)[0]) for metric in measured.metrics}


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
