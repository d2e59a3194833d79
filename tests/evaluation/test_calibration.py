from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from gptcli.evaluation.calibration import (
    LabelError,
    ReliabilityRow,
    average_precision,
    best_threshold,
    confidence_bins,
    confident_mistakes,
    probable_label_errors,
    reliability_table,
    roc_auc,
)

SEEDS = range(20)


def of_second(*p_second: float) -> np.ndarray:
    """Return (examples, 2) probabilities."""
    return np.stack([1 - np.array(p_second), p_second], 1)


def random_scores(seed: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 probabilities of the second label, and who has it: some of each."""
    generator = np.random.default_rng(seed)
    is_second = generator.random(generator.integers(2, 80)) < generator.random()
    is_second[:2] = False, True
    p = 1 / (1 + np.exp(-generator.normal(is_second - 0.5, 1)))
    return p.round(decimals).astype(np.float32), is_second


@pytest.mark.parametrize("bins", [10, 15])
def test_a_bin_holds_its_upper_end_and_not_its_lower_one(bins: int) -> None:
    ends = np.arange(1, bins + 1) / bins
    assert confidence_bins(ends, bins).tolist() == list(range(bins))
    assert confidence_bins(ends[:-1] + 1e-9, bins).tolist() == list(range(1, bins))


def test_what_is_0_or_above_1_by_a_rounding_is_in_the_first_or_last_bin() -> None:
    assert confidence_bins(np.array([0, 1 + 1e-7]), 10).tolist() == [0, 9]


def test_reliability_is_that_worked_by_hand_without_empty_rows() -> None:
    probabilities = of_second(0.95, 0.04, 0.91, 0.65)
    table = reliability_table(probabilities, np.array([1, 0, 0, 1]), bins=10)
    assert [(row.low, row.high, row.examples) for row in table] == [(0.6, 0.7, 1), (0.9, 1, 3)]
    assert [row.mean_confidence for row in table] == pytest.approx([0.65, (0.95 + 0.96 + 0.91) / 3])
    assert [row.accuracy for row in table] == pytest.approx([1, 2 / 3])


@pytest.mark.parametrize("seed", SEEDS)
def test_reliability_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([0.5, 0.5, 0.5], 100)
    true = generator.integers(0, 3, 100)
    table = reliability_table(probabilities, true)
    confidence = probabilities.max(1)
    expected = calibration_curve(probabilities.argmax(1) == true, confidence, n_bins=10)
    assert [row.accuracy for row in table] == pytest.approx(expected[0])
    assert [row.mean_confidence for row in table] == pytest.approx(expected[1])
    assert sum(row.examples for row in table) == 100
    assert all(row.low < row.mean_confidence <= row.high for row in table)


def test_perfect_predictions_fill_the_last_row() -> None:
    true = np.array([0, 1, 1])
    row = ReliabilityRow(low=0.9, high=1, examples=3, mean_confidence=1, accuracy=1)
    assert reliability_table(np.eye(2)[true], true) == [row]
    assert confident_mistakes(np.eye(2)[true], true, 5) == []


def test_the_most_confident_mistakes_come_first() -> None:
    probabilities = of_second(0.6, 0.99, 0.9, 0.1, 0.9)
    true = np.array([0, 1, 0, 1, 0])
    # 0.6, right, 0.9, 0.9, 0.9: equals stay in order.
    assert confident_mistakes(probabilities, true, 10) == [2, 3, 4, 0]
    assert confident_mistakes(probabilities, true, 2) == [2, 3]


def test_label_errors_are_those_worked_by_hand() -> None:
    probabilities = np.array(
        [
            [0.8, 0.1, 0.1],
            [0.7, 0.2, 0.1],
            [0.0, 0.6, 0.4],  # Given 0, surely 1.
            [0.2, 0.7, 0.1],
            [0.6, 0.3, 0.1],  # Given 1, probably 0.
            [0.1, 0.2, 0.7],
            [0.4, 0.4, 0.2],  # Given 2; 0 and 1 are likelier, but do not reach their thresholds.
        ]
    )
    true = np.array([0, 0, 0, 1, 1, 2, 2])
    # Thresholds: (0.8 + 0.7 + 0.0) / 3 = 0.5, (0.7 + 0.3) / 2 = 0.5, (0.7 + 0.2) / 2 = 0.45.
    expected = [LabelError(example=2, suspected=1), LabelError(example=4, suspected=0)]
    assert probable_label_errors(probabilities, true, 10) == expected
    assert probable_label_errors(probabilities, true, 1) == expected[:1]


def test_a_label_is_suspected_for_being_likelier_than_usual_and_not_for_being_the_likeliest() -> None:
    probabilities = of_second(0.05, 0.05, 0.05, 0.4, 0.3, 0.3)
    true = np.array([0, 0, 0, 0, 1, 1])
    # Thresholds: (3 * 0.95 + 0.6) / 4 = 0.8625 and 0.3.
    assert probable_label_errors(probabilities, true, 10) == [LabelError(example=3, suspected=1)]


def test_a_label_that_is_given_to_no_example_is_never_suspected() -> None:
    probabilities = np.array([[0.1, 0.0, 0.9], [0.2, 0.0, 0.8], [0.0, 0.5, 0.5]])
    assert probable_label_errors(probabilities, np.array([0, 0, 1]), 10) == []


def test_equal_probabilities_reach_their_mean() -> None:
    # The mean of three times 0.1 is above 0.1 by a rounding.
    probabilities = np.array([[0.1, 0.0, 0.9]] * 4)
    found = probable_label_errors(probabilities, np.array([0, 0, 0, 1]), 10)
    assert found == [LabelError(example=3, suspected=0)]


@pytest.mark.parametrize("seed", SEEDS)
def test_most_labels_that_were_exchanged_are_found_and_no_others(seed: int) -> None:
    generator = np.random.default_rng(seed)
    right = generator.integers(0, 4, 400)
    odds = np.exp(generator.normal(0, 0.5, (400, 4)) + 4 * np.eye(4)[right])
    exchanged = generator.choice(400, 20, replace=False)
    given = right.copy()
    given[exchanged] = (right[exchanged] + 1) % 4
    found = probable_label_errors(odds / odds.sum(1, keepdims=True), given, 400)
    # The others of them do not reach the threshold.
    assert 10 <= len(found) <= 20
    assert {error.example for error in found} <= set(exchanged.tolist())
    assert all(error.suspected == right[error.example] for error in found)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("decimals", [1, 6], ids=["with ties", "without ties"])
def test_areas_equal_those_of_scikit_learn(seed: int, decimals: int) -> None:
    p, is_second = random_scores(seed, decimals)
    assert roc_auc(p, is_second) == pytest.approx(metrics.roc_auc_score(is_second, p))
    expected = metrics.average_precision_score(is_second, p)
    assert average_precision(p, is_second) == pytest.approx(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("decimals", [1, 6], ids=["with ties", "without ties"])
def test_no_threshold_has_a_higher_f1_than_the_best(seed: int, decimals: int) -> None:
    p, is_second = random_scores(seed, decimals)
    best = best_threshold(p, is_second)
    assert best is not None
    assert best.f1 == pytest.approx(metrics.f1_score(is_second, p >= best.threshold))
    precision, recall, _ = metrics.precision_recall_curve(is_second, p)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    assert best.f1 == pytest.approx(f1.max())
    assert best.f1_at_half == pytest.approx(metrics.f1_score(is_second, p > 0.5, zero_division=0))


def test_the_best_threshold_is_midway_between_neighbours() -> None:
    best = best_threshold(np.array([0.1, 0.2, 0.4, 0.9]), np.array([False, False, True, True]))
    assert best is not None
    assert (best.threshold, best.f1, best.f1_at_half) == pytest.approx((0.3, 1, 2 / 3))


def test_no_threshold_separates_equal_probabilities() -> None:
    best = best_threshold(np.array([0.3, 0.6, 0.6, 0.6]), np.array([False, False, True, True]))
    assert best is not None
    assert (best.threshold, best.f1) == pytest.approx((0.45, 0.8))


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken() -> None:
    # F1 from 0.8 on: 2 * 1 / (1 + 2); from 0.4 on: 2 * 2 / (4 + 2).
    p, is_second = np.array([0.8, 0.7, 0.6, 0.4]), np.array([True, False, False, True])
    best = best_threshold(p, is_second)
    assert best is not None
    assert (best.threshold, best.f1) == pytest.approx((0.75, 2 / 3))
    best = best_threshold(1 - p[::-1], is_second)
    assert best is not None
    assert (best.threshold, best.f1) == pytest.approx((0.5, 2 / 3))


def test_all_examples_may_lie_above_the_threshold() -> None:
    always = np.full(3, True)
    for p, threshold in ((np.array([0.2, 0.3, 0.9]), 0.1), (np.zeros(3), 0)):
        best = best_threshold(p, always)
        assert best is not None
        assert (best.threshold, best.f1) == pytest.approx((threshold, 1))


def test_a_threshold_between_neighbours_among_floats_separates_them() -> None:
    low = 0.7
    p = np.array([low, np.nextafter(low, 1)])
    best = best_threshold(p, np.array([False, True]))
    assert best is not None
    assert (p >= best.threshold).tolist() == [False, True]


def test_a_probability_of_a_half_goes_to_the_first_label() -> None:
    best = best_threshold(np.array([0.5, 0.2]), np.array([True, False]))
    assert best is not None
    assert best.f1_at_half == 0


def test_what_needs_examples_of_a_label_that_has_none_is_undefined() -> None:
    p, never, always = np.array([0.2, 0.8]), np.array([False, False]), np.array([True, True])
    assert (roc_auc(p, never), average_precision(p, never), best_threshold(p, never)) == (None,) * 3
    assert (roc_auc(p, always), average_precision(p, always)) == (None, 1)
