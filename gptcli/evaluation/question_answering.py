"""How well questions are answered: the exact match and F1 of SQuAD, as its published scripts count them.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (v1.1), and 2018,
"Know What You Don't Know: Unanswerable Questions for SQuAD" (v2.0).

1. `normalize_answer` takes away what should not matter: case, punctuation, articles, white space;
2. `exact_match` and `token_f1` compare an answer with the acceptable ones, and take the best;
3. `score_answers` averages over questions;
4. `best_threshold` decides from when on a question is better left unanswered.

The normalization knows English articles, ASCII punctuation and words between spaces. Answers in a
script without spaces are one token each, whose F1 is the exact match.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class QuestionScores:
    """The scores of some questions."""

    exact_match: float
    """Mean over questions, in percent."""
    f1: float
    """Mean over questions, in percent."""
    count: int
    """Questions."""


@dataclass(frozen=True)
class AnswerScores(QuestionScores):
    """The scores of all questions."""

    missing: int
    """Questions without a prediction: each counts as wrong."""
    unknown: int
    """Predictions for what is no question: they count for nothing."""
    has_answer: QuestionScores | None = None
    """Of the answerable questions alone; None unless there are both kinds."""
    no_answer: QuestionScores | None = None
    """Of the unanswerable ones alone."""

    def as_dict(self) -> dict[str, Any]:
        """Return all that is not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without punctuation and articles, its words between single spaces.

    Punctuation is that of ASCII, as in the published scripts: curly quotes and long dashes stay.
    """
    # In this order: with its punctuation gone, "A.N." is an article too.
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction, normalized, is one of the answers, else 0.

    answers: those that are acceptable; none if the question is unanswerable. Then only a prediction
    that is empty when normalized is right.
    """
    return float(normalize_answer(predicted) in _acceptable(answers))


def token_f1(predicted: str, answers: Sequence[str]) -> float:
    """Return how far the words of the prediction are those of the answer that fits it best, 0 to 1.

    That is 2 * common / (words predicted + words of the answer), repeated words counted as often as
    both have them. answers: as in `exact_match`; for an unanswerable question the two are equal.
    """
    words = normalize_answer(predicted).split()
    return max(_f1(words, answer.split()) for answer in _acceptable(answers))


def score_answers(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> AnswerScores:
    """Return the scores of at least one question.

    predictions: by question id, the answer; "" says that there is none.
    answers: by question id, those that are acceptable; none if the question is unanswerable.
    A missing prediction is wrong, also for an unanswerable question: the v1.1 script counts it so, that
    of v2.0 leaves the question out, which would reward leaving out the hard ones.
    """
    assert answers
    # (questions, 2): exact match and F1.
    scores = np.array(
        [
            (exact_match(predictions[question], accepted), token_f1(predictions[question], accepted))
            if question in predictions
            else (0.0, 0.0)
            for question, accepted in answers.items()
        ]
    )
    is_answerable = np.array([bool(accepted) for accepted in answers.values()])
    has_answer = no_answer = None
    if is_answerable.any() and not is_answerable.all():
        has_answer = QuestionScores(*_percentages(scores[is_answerable]))
        no_answer = QuestionScores(*_percentages(scores[~is_answerable]))
    return AnswerScores(
        *_percentages(scores),
        missing=len(answers.keys() - predictions.keys()),
        unknown=len(predictions.keys() - answers.keys()),
        has_answer=has_answer,
        no_answer=no_answer,
    )


def best_threshold(
    no_answer_minus_best: np.ndarray, score_if_answered: np.ndarray, is_answerable: np.ndarray
) -> tuple[float, float]:
    """Return the threshold above which a question is best left unanswered, and the mean score with it.

    no_answer_minus_best: (questions,), finite; the model's score of "no answer" less that of its best
    answer, in nats. A question is answered where this is at most the threshold.
    score_if_answered: (questions,), 0 to 1, of the best answer. is_answerable: (questions,) bool; an
    unanswerable question left unanswered scores 1, an answerable one 0.
    The mean is over questions, 0 to 1. The threshold is finite and lies midway between two neighbouring
    margins, or 1 beyond the first or last; of several that are equally good it is the lowest. (The v2.0
    script takes a margin itself; questions not seen here are then cut off at the very edge.)
    """
    margins = no_answer_minus_best.astype(np.float64)
    scores = score_if_answered.astype(np.float64)
    unanswerable = ~is_answerable.astype(bool)
    assert margins.shape == scores.shape == unanswerable.shape == (len(margins),) and len(margins)
    assert np.isfinite(margins).all()
    order = margins.argsort(kind="stable")
    ordered = margins[order]
    # gains[n]: what answering the n questions with the lowest margins adds to answering none.
    gains = np.concatenate([[0.0], (scores - unanswerable)[order].cumsum()])
    # No threshold separates equal margins.
    gains[1:-1][ordered[1:] == ordered[:-1]] = -np.inf
    # Rounded: of sums that are equal but for the rounding of floats, the first is taken.
    answered = int(gains.round(9).argmax())
    if answered == 0:
        threshold = min(ordered[0] - 1, np.nextafter(ordered[0], -np.inf))
    elif answered == len(ordered):
        threshold = ordered[-1] + 1
    else:
        below, above = ordered[answered - 1], ordered[answered]
        threshold = below / 2 + above / 2
        if not below <= threshold < above:  # The two are neighbours among floats.
            threshold = below
    mean = np.where(margins <= threshold, scores, unanswerable).mean()
    return float(threshold), float(mean)


def _acceptable(answers: Sequence[str]) -> list[str]:
    """Return the normalized answers that are not empty, or the empty one if there is no other."""
    assert not isinstance(answers, str)  # It is a sequence of strings, too.
    return [normal for answer in answers if (normal := normalize_answer(answer))] or [""]


def _f1(predicted: list[str], answer: list[str]) -> float:
    if not predicted or not answer:
        return float(predicted == answer)
    common = (Counter(predicted) & Counter(answer)).total()
    return 2 * common / (len(predicted) + len(answer))


def _percentages(scores: np.ndarray) -> tuple[float, float, int]:
    """Return the means in percent, and the number of questions. scores: (questions, 2), 0 to 1."""
    exact, f1 = (100 * scores.mean(0)).tolist()
    return exact, f1, len(scores)
