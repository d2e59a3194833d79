"""How well questions are answered: the exact match and F1 of SQuAD, and CMRC for scripts without spaces.

Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (v1.1), and 2018,
"Know What You Don't Know: Unanswerable Questions for SQuAD" (v2.0). Cui et al. 2019, "A Span-Extraction
Dataset for Chinese Machine Reading Comprehension" (CMRC 2018).

1. `normalize_answer` takes away what should not matter: case, punctuation, articles, white space;
2. `exact_match` and `token_f1` compare an answer with the acceptable ones, and take the best;
3. `score_answers` averages over questions, `measure_answers` keeps each question's own scores;
4. `best_threshold` decides from when on a question is better left unanswered.

Which rule holds is decided for each pair of a prediction and an acceptable answer:

- If neither has a character of a script without spaces (Han, kana, Thai, Lao, Khmer, Myanmar), that of
  SQuAD: English articles and ASCII punctuation go, and F1 counts the words that both have, in any order.
- Else that of CMRC: punctuation of any script and white space go, articles stay, each such character is
  a token, and so is each word between them. F1 counts the longest run of tokens that both have, and is 1
  for an exact match. The full stop and comma of East Asia and full-width forms, too, call for this rule:
  they tell that "308。" is Chinese or Japanese.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gptcli.evaluation.bootstrap import Measured, Metric

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# As parts of a character class: letters, marks and digits. Signs of currency say nothing of the script.
_UNSPACED = (
    r"\u2E80-\u2FDF\u3005-\u3007\u3021-\u3029\u3038-\u303C\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF"  # Han
    r"\U00020000-\U0003FFFF"  # Han
    r"\u3031-\u3035\u3041-\u309F\u30A1-\u30FA\u30FC-\u30FF\u31F0-\u31FF\uFF66-\uFF9F"  # kana
    r"\U0001AFF0-\U0001B16F"  # kana
    r"\u0E01-\u0E3A\u0E40-\u0E4E\u0E50-\u0E59"  # Thai
    r"\u0E80-\u0EFF"  # Lao
    r"\u1780-\u17D3\u17D7\u17DC-\u17F9\u19E0-\u19FF"  # Khmer
    r"\u1000-\u1049\u1050-\u109F\uA9E0-\uA9FE\uAA60-\uAA7F\U000116D0-\U000116E3"  # Myanmar
)
# Not the brackets of East Asia: Korean, which has spaces, uses them too.
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}、。\uFF01-\uFF65]")
# A zero-width space ends a word, too, though to Python it is no white space.
_TOKENS = re.compile(rf"[{_UNSPACED}]|[^\s\u200B{_UNSPACED}]+")


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

    So are answers in scripts with spaces compared. Punctuation is that of ASCII, as in the published
    scripts: curly quotes and long dashes stay.
    """
    # In this order: with its punctuation gone, "A.N." is an article too.
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is one of the answers but for what should not matter, else 0.

    answers: those that are acceptable; none if the question is unanswerable. Then only a prediction
    of which nothing is left is right.
    """
    return _score_answer(predicted, answers)[0]


def token_f1(predicted: str, answers: Sequence[str]) -> float:
    """Return how far the tokens of the prediction are those of the answer that fits it best, 0 to 1.

    That is 2 * common / (tokens predicted + tokens of the answer). Common are the words that both have,
    repeated ones as often as both have them, or the longest run that both have; see the module.
    answers: as in `exact_match`; for an unanswerable question the two are equal.
    """
    return _score_answer(predicted, answers)[1]


def score_answers(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> AnswerScores:
    """Return the scores of at least one question.

    predictions: by question id, the answer; "" says that there is none.
    answers: by question id, those that are acceptable; none if the question is unanswerable.
    A missing prediction is wrong, also for an unanswerable question: the v1.1 script counts it so, that
    of v2.0 leaves the question out, which would reward leaving out the hard ones.
    """
    scores, is_answerable = _score_questions(predictions, answers)
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


def measure_answers(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> Measured:
    """Return what was measured of each question, in the order of `answers`: at least one.

    Arguments and scores, in percent, are those of `score_answers`. The scores of answerable and of
    unanswerable questions alone are among the metrics if there are both kinds.
    """
    scores, is_answerable = _score_questions(predictions, answers)
    # Exact match, F1 and how many, first of answerable questions, then of unanswerable ones.
    rows = np.column_stack([scores, np.ones(len(scores))])
    items = np.hstack([rows * is_answerable[:, None], rows * ~is_answerable[:, None]])
    answerable, unanswerable = 0, 1

    def percentage(name: str, definition: str, score: int, kinds: list[int]) -> Metric:
        def of_kinds(sums: np.ndarray) -> np.ndarray:
            return np.asarray(sums.reshape(-1, 2, 3)[:, kinds].sum(1))

        return Metric(
            name,
            definition,
            lambda sums: 100 * of_kinds(sums)[:, score] / of_kinds(sums)[:, 2],
            items_of=lambda sums: of_kinds(sums)[:, 2],
            whole=100.0,
        )

    both = [answerable, unanswerable]
    metrics = [
        percentage("exact_match", "questions answered to the word, in percent", 0, both),
        percentage("f1", "mean overlap of words with the right answer, in percent", 1, both),
    ]
    if is_answerable.any() and not is_answerable.all():
        metrics += [
            percentage(
                "exact_match_has_answer", "the exact match of answerable questions", 0, [answerable]
            ),
            percentage("f1_has_answer", "the F1 of answerable questions", 1, [answerable]),
            percentage(
                "exact_match_no_answer", "unanswerable questions left so, in percent", 0, [unanswerable]
            ),
        ]
    return Measured(items, metrics, "questions")


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


def _score_questions(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (questions, 2) exact match and F1, 0 to 1, and (questions,) whether it has an answer."""
    assert answers
    scores = [
        _score_answer(predictions[question], accepted) if question in predictions else (0.0, 0.0)
        for question, accepted in answers.items()
    ]
    return np.array(scores), np.array([bool(accepted) for accepted in answers.values()])


def _score_answer(predicted: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return the best exact match and the best F1 of the prediction with any of the answers.

    Answers of which nothing is left count only if there is no other.
    """
    assert not isinstance(answers, str)  # It is a sequence of strings, too.
    acceptable = [answer for answer in answers if not _compare(answer, "")[0]] or [""]
    exact, f1 = zip(*(_compare(predicted, answer) for answer in acceptable), strict=True)
    return max(exact), max(f1)


def _compare(predicted: str, answer: str) -> tuple[float, float]:
    """Return exact match and F1 of a pair, by the rule for its script."""
    if _IS_UNSPACED.search(predicted + answer):
        tokens, right = _characters_and_words(predicted), _characters_and_words(answer)
        # Spaces in such text mean little: "3 D" is "3D".
        if "".join(tokens) == "".join(right):
            return 1.0, 1.0
        common = _longest_common_run(tokens, right)
    else:
        tokens, right = normalize_answer(predicted).split(), normalize_answer(answer).split()
        if tokens == right:
            return 1.0, 1.0
        common = (Counter(tokens) & Counter(right)).total()
    return 0.0, 2 * common / (len(tokens) + len(right))


def _characters_and_words(text: str) -> list[str]:
    """Return the characters of scripts without spaces, each alone, and the words between them.

    In lower case and without punctuation, which leaves no gap.
    """
    bare = "".join(character for character in text.lower() if not _is_punctuation(character))
    return _TOKENS.findall(bare)


def _is_punctuation(character: str) -> bool:
    # To Unicode, ASCII's "+" and "~" and their full-width forms are none; SQuAD and CMRC take them away.
    narrow = unicodedata.normalize("NFKC", character)
    return unicodedata.category(character)[0] == "P" or not narrow.translate(_NO_PUNCTUATION)


def _longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many tokens the longest run has that both have."""
    # As one character a token, since Python finds a string in another far faster than we would.
    codes = {token: chr(code) for code, token in enumerate({*first, *second})}
    short, long = sorted(
        ("".join(codes[token] for token in tokens) for tokens in (first, second)), key=len
    )
    longest = 0
    for start in range(len(short)):
        while start + longest < len(short) and short[start : start + longest + 1] in long:
            longest += 1
    return longest


def _percentages(scores: np.ndarray) -> tuple[float, float, int]:
    """Return the means in percent, and the number of questions. scores: (questions, 2), 0 to 1."""
    exact, f1 = (100 * scores.mean(0)).tolist()
    return exact, f1, len(scores)
