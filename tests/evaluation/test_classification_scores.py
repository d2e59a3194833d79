from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from sklearn import metrics

from gptcli.evaluation.classification import (
    LabelScore,
    score_label_sets,
    score_labels,
    score_numbers,
)

LABELS = ["no", "perhaps", "yes", "never seen"]
SEEDS = range(20)


def test_scores_of_single_labels_are_those_worked_by_hand() -> None:
    true = np.array([0, 0, 0, 2, 2, 0])
    predicted = np.array([0, 0, 2, 2, 2, 1])
    scores = score_labels(predicted, true, LABELS)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.confusion == [[2, 1, 1, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert scores.per_label["no"] == LabelScore(precision=1, recall=0.5, f1=4 / 6, support=4)
    assert scores.per_label["perhaps"] == LabelScore(precision=0, recall=0, f1=0, support=0)
    assert scores.per_label["yes"] == LabelScore(precision=2 / 3, recall=1, f1=0.8, support=2)
    # "perhaps" was predicted and counts, "never seen" does not.
    assert scores.macro_f1 == pytest.approx((4 / 6 + 0 + 0.8) / 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("label_count", [2, 5, 40])
def test_scores_of_single_labels_equal_those_of_scikit_learn(seed: int, label_count: int) -> None:
    generator = np.random.default_rng(seed)
    labels = [f"label {number}" for number in range(label_count)]
    occurring = generator.choice(label_count, generator.integers(1, label_count + 1), replace=False)
    size = generator.integers(1, 60)
    true = generator.choice(occurring, size)
    predicted = np.where(generator.random(size) < 0.5, true, generator.integers(0, label_count, size))

    scores = score_labels(predicted, true, labels)
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(true, predicted))
    expected = metrics.f1_score(true, predicted, average="macro", zero_division=0)
    assert scores.macro_f1 == pytest.approx(expected)
    numbers = list(range(label_count))
    matrix = metrics.confusion_matrix(true, predicted, labels=numbers)
    assert scores.confusion == matrix.tolist()
    table = metrics.precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0)
    assert_scores_are(scores.per_label, labels, table)


def test_scores_of_label_sets_are_those_worked_by_hand() -> None:
    true = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    predicted = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    scores = score_label_sets(predicted, true, LABELS)
    assert scores.exact_match == pytest.approx(1 / 3)  # Of the last, that has no labels.
    assert scores.micro_f1 == pytest.approx(2 * 2 / (3 + 3))
    assert scores.macro_f1 == pytest.approx((1 + 0 + 0) / 3)
    assert scores.per_label["no"] == LabelScore(precision=1, recall=1, f1=1, support=2)
    assert scores.per_label["yes"] == LabelScore(precision=0, recall=0, f1=0, support=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_of_label_sets_equal_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size, label_count = generator.integers(1, 30), 6
    labels = [f"label {number}" for number in range(label_count)]
    # Label 0 never occurs; some others are rare.
    rates = np.linspace(0, 0.6, label_count)
    true = generator.random((size, label_count)) < rates
    predicted = np.where(generator.random(true.shape) < 0.7, true, rates > 0.3)

    scores = score_label_sets(predicted, true.astype(np.int64), labels)
    assert scores.exact_match == pytest.approx(metrics.accuracy_score(true, predicted))
    expected = metrics.f1_score(true, predicted, average="micro", zero_division=0)
    assert scores.micro_f1 == pytest.approx(expected)
    occurring = np.flatnonzero((true | predicted).any(0))
    if len(occurring):
        expected = metrics.f1_score(true, predicted, labels=occurring, average="macro", zero_division=0)
        assert scores.macro_f1 == pytest.approx(expected)
    table = metrics.precision_recall_fscore_support(true, predicted, zero_division=0)
    assert_scores_are(scores.per_label, labels, table)


def assert_scores_are(per_label: dict[str, LabelScore], labels: list[str], table: Any) -> None:
    """table: what scikit-learn's precision_recall_fscore_support returns."""
    assert list(per_label) == labels
    for score, *expected in zip(per_label.values(), *table, strict=True):
        found = (score.precision, score.recall, score.f1, score.support)
        assert found == pytest.approx(expected)


def test_no_labels_at_all_have_an_f1_of_0() -> None:
    none = np.zeros((3, 4), dtype=bool)
    scores = score_label_sets(none, none, LABELS)
    assert (scores.exact_match, scores.micro_f1, scores.macro_f1) == (1, 0, 0)


def test_scores_of_numbers_are_those_worked_by_hand() -> None:
    scores = score_numbers(np.array([1.0, 3.0, 2.0]), np.array([1.0, 2.0, 6.0]))
    assert scores.mean_squared_error == pytest.approx((0 + 1 + 16) / 3)
    assert scores.mean_absolute_error == pytest.approx((0 + 1 + 4) / 3)
    # Distances from the means: (-1, 1, 0) and (-2, -1, 3); ranks (1, 3, 2) and (1, 2, 3).
    assert scores.pearson == pytest.approx((2 - 1 + 0) / math.sqrt(2 * 14))
    assert scores.spearman == pytest.approx(0.5)
    assert scores.r2 == pytest.approx(1 - 17 / 14)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("decimals", [0, 8], ids=["with ties", "without ties"])
def test_scores_of_numbers_equal_those_of_scikit_learn_and_scipy(seed: int, decimals: int) -> None:
    generator = np.random.default_rng(seed)
    true = (1000 + generator.normal(0, 2, 50)).round(decimals)
    predicted = (true + generator.normal(0, 3, 50)).round(decimals).astype(np.float32)
    # The ties of float32, and the arithmetic of float64.
    scores, exact = score_numbers(predicted, true), predicted.astype(np.float64)
    assert scores.mean_squared_error == pytest.approx(metrics.mean_squared_error(true, exact))
    assert scores.mean_absolute_error == pytest.approx(metrics.mean_absolute_error(true, exact))
    assert scores.r2 == pytest.approx(metrics.r2_score(true, exact))
    assert scores.pearson == pytest.approx(stats.pearsonr(true, exact).statistic)
    assert scores.spearman == pytest.approx(stats.spearmanr(true, exact).statistic)


def test_a_score_that_is_undefined_is_none_and_left_out() -> None:
    # 0.1 added three times and divided by 3 is not 0.1: constants are not told by their variance.
    constant, varying = np.full(3, 0.1), np.array([1.0, 2.0, 4.0])
    scores = score_numbers(constant, varying)
    assert (scores.pearson, scores.spearman) == (None, None)
    assert scores.r2 == pytest.approx(metrics.r2_score(varying, constant))
    assert list(scores.as_dict()) == ["mean_squared_error", "mean_absolute_error", "r2"]
    for predicted in (varying, constant):
        scores = score_numbers(predicted, constant)
        assert (scores.pearson, scores.spearman, scores.r2) == (None, None, None)
    one = score_numbers(np.array([3.0]), np.array([1.0]))
    assert one.as_dict() == {"mean_squared_error": 4, "mean_absolute_error": 2}


@pytest.mark.parametrize("unit", [1e-200, 1e-5, 1e100])
def test_the_unit_of_numbers_changes_neither_correlations_nor_r2(unit: float) -> None:
    scores = score_numbers(unit * np.array([1.0, 3.0, 2.0]), unit * np.array([1.0, 2.0, 6.0]))
    assert scores.pearson == pytest.approx(1 / math.sqrt(28))
    assert scores.spearman == pytest.approx(0.5)
    assert scores.r2 == pytest.approx(1 - 17 / 14)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_show_in_the_errors(value: float) -> None:
    scores = score_numbers(np.array([1.0, value, 2.0]), np.array([1.0, 2.0, 6.0]))
    assert not math.isfinite(scores.mean_squared_error)
    assert not math.isfinite(scores.mean_absolute_error)
    assert (scores.pearson, scores.spearman, scores.r2) == (None, None, None)


COLUMNS = arrays.arrays(np.float64, 4, elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(predicted=COLUMNS, true=COLUMNS)
def test_correlations_are_between_minus_1_and_1_for_numbers_of_any_size(
    predicted: np.ndarray, true: np.ndarray
) -> None:
    scores = score_numbers(predicted, true)
    assert (scores.pearson is None) == (scores.spearman is None)
    for correlation in (scores.pearson, scores.spearman):
        assert correlation is None or -1 <= correlation <= 1
    assert scores.r2 is None or scores.r2 <= 1
    if scores.spearman is not None:
        assert scores.spearman == pytest.approx(stats.spearmanr(predicted, true).statistic)


def test_scores_are_json() -> None:
    true, predicted = np.array([0, 1, 1]), np.array([0, 1, 0])
    for scores in (
        score_labels(predicted, true, LABELS),
        score_label_sets(np.eye(4)[predicted] > 0, np.eye(4)[true], LABELS),
        score_numbers(predicted.astype(np.float32), true.astype(np.float64)),
    ):
        as_dict = scores.as_dict()
        assert json.loads(json.dumps(as_dict, allow_nan=False)) == as_dict
