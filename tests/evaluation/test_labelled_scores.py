from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from gptcli.evaluation.bootstrap import Measured, differences, scores_of
from gptcli.evaluation.classification import score_label_sets, score_labels, score_numbers
from gptcli.evaluation.labelled_scores import measure_label_sets, measure_labels, measure_numbers

SEEDS = range(20)


def defined(measured: Measured) -> dict[str, float]:
    """Return the scores of all items, without those that are undefined."""
    total = measured.items.sum(0, keepdims=True)
    scores = {metric.name: metric.of_sums(total) for metric in measured.metrics}
    assert all(score.shape == (1,) for score in scores.values())
    return {name: float(score[0]) for name, score in scores.items() if not np.isnan(score[0])}


def random_labels(seed: int, label_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 (examples, labels) probabilities and (examples,) true labels, not all occurring."""
    generator = np.random.default_rng(seed)
    size = generator.integers(1, 60)
    occurring = generator.choice(label_count, generator.integers(1, label_count + 1), replace=False)
    true = generator.choice(occurring, size)
    logits = generator.normal(0, 1, (size, label_count))
    logits[np.arange(size), true] += 1.5
    odds = np.exp(logits)
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32), true


def test_scores_of_two_labels_are_those_worked_by_hand() -> None:
    p_spam = np.array([0.9, 0.9, 0.6, 0.2])
    true = np.array([1, 0, 1, 1])
    scores = defined(measure_labels(np.stack([1 - p_spam, p_spam], 1), true, ["ham", "spam"]))
    assert scores == pytest.approx(
        {
            "accuracy": 2 / 4,
            "macro_f1": (0 + 2 / 3) / 2,
            "micro_f1": 2 / 4,
            "weighted_f1": (1 * 0 + 3 * 2 / 3) / 4,
            "precision_spam": 2 / 3,
            "recall_spam": 2 / 3,
            "f1_spam": 2 / 3,
            "log_loss": -(math.log(0.9) + math.log(0.1) + math.log(0.6) + math.log(0.2)) / 4,
            # 0.9 twice, of which one is right; 0.6, right; 0.8, wrong: three bins.
            "ece": (abs(1.8 - 1) + abs(0.6 - 1) + abs(0.8 - 0)) / 4,
        }
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("label_count", [2, 5, 30])
def test_scores_of_labels_equal_those_of_scikit_learn(seed: int, label_count: int) -> None:
    probabilities, true = random_labels(seed, label_count)
    predicted = probabilities.argmax(1)
    labels = [f"label {number}" for number in range(label_count)]
    scores = defined(measure_labels(probabilities, true, labels))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(true, predicted))
    for average in ("macro", "micro", "weighted"):
        expected = metrics.f1_score(true, predicted, average=average, zero_division=0)
        assert scores[f"{average}_f1"] == pytest.approx(expected)
    # scikit-learn warns where probabilities do not quite add up to 1.
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(1, keepdims=True)
    expected = metrics.log_loss(true, exact, labels=range(label_count))
    assert scores["log_loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_of_the_second_of_two_labels_equal_those_of_scikit_learn(seed: int) -> None:
    probabilities, true = random_labels(seed, 2)
    predicted = probabilities.argmax(1)
    scores = defined(measure_labels(probabilities, true, ["ham", "spam"]))
    found = [scores.get(f"{name}_spam") for name in ("precision", "recall", "f1")]
    if not (true | predicted).any():
        assert found == [None] * 3
        return
    expected = metrics.precision_recall_fscore_support(
        true, predicted, average="binary", zero_division=0
    )
    assert found == pytest.approx(list(expected[:3]))


@pytest.mark.parametrize("seed", SEEDS)
def test_macro_f1_is_that_of_the_scores_after_training(seed: int) -> None:
    labels = ["a", "b", "c", "d"]
    probabilities, true = random_labels(seed, 4)
    after_training = score_labels(probabilities.argmax(1), true, labels)
    scores = defined(measure_labels(probabilities, true, labels))
    assert scores["macro_f1"] == pytest.approx(after_training.macro_f1)
    assert scores["accuracy"] == pytest.approx(after_training.accuracy)


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_error_follows_from_the_calibration_curve_of_scikit_learn(seed: int) -> None:
    probabilities, true = random_labels(seed, 3)
    confidence = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == true
    accuracy, mean_confidence = calibration_curve(is_right, confidence, n_bins=15)
    counts, _ = np.histogram(confidence, np.linspace(0, 1, 16))
    expected = np.average(np.abs(accuracy - mean_confidence), weights=counts[counts > 0])
    assert defined(measure_labels(probabilities, true, ["a", "b", "c"]))["ece"] == pytest.approx(
        expected
    )


def test_perfect_predictions_have_perfect_scores() -> None:
    true = np.array([0, 1, 1, 0])
    scores = defined(measure_labels(np.eye(2, dtype=np.float32)[true], true, ["ham", "spam"]))
    losses = {"log_loss": 0, "ece": 0}
    assert scores == {name: losses.get(name, 1) for name in scores}


def test_a_label_that_never_occurs_has_no_scores() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2]])
    scores = defined(measure_labels(probabilities, np.array([0, 0]), ["ham", "spam"]))
    assert scores["macro_f1"] == 1
    assert not [name for name in scores if name.endswith("spam")]


def test_a_label_that_is_never_predicted_has_a_precision_of_0() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2]])
    scores = defined(measure_labels(probabilities, np.array([0, 1]), ["ham", "spam"]))
    assert [scores[f"{name}_spam"] for name in ("precision", "recall", "f1")] == [0, 0, 0]


def test_a_true_label_of_probability_0_costs_as_much_as_the_smallest_float32() -> None:
    probabilities = np.array([[0, 1], [0, 1]], dtype=np.float32)
    scores = defined(measure_labels(probabilities, np.array([0, 1]), ["ham", "spam"]))
    assert scores["log_loss"] == pytest.approx(126 * math.log(2) / 2)


def test_losses_are_better_when_lower() -> None:
    measured = measure_labels(np.eye(2), np.array([0, 1]), ["ham", "spam"])
    assert {metric.name for metric in measured.metrics if not metric.is_better_higher} == {
        "log_loss",
        "ece",
    }


def test_scores_of_label_sets_are_those_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.2, 0.4], [0.3, 0.5, 0.1], [0.1, 0.1, 0.1]])
    true = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]])
    measured = measure_label_sets(probabilities, true, ["a", "b", "c"], 0.3)
    # Predicted are a and c, a and b, and none.
    assert defined(measured) == pytest.approx(
        {
            "exact_match": 2 / 3,
            "micro_f1": 2 * 3 / (4 + 3),
            "macro_f1": (1 + 0 + 1) / 3,
            "weighted_f1": 1,
        }
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_of_label_sets_equal_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size, label_count = generator.integers(1, 30), 6
    labels = [f"label {number}" for number in range(label_count)]
    # Label 0 never occurs; some others are rare.
    rates = np.linspace(0, 0.6, label_count)
    true = generator.random((size, label_count)) < rates
    true[0, -1] = True
    probabilities = np.where(true, 0.7, 0.1) * generator.random(true.shape).astype(np.float32)
    predicted = probabilities >= 0.2
    predicted[:, 0] = False
    probabilities[:, 0] = 0

    scores = defined(measure_label_sets(probabilities, true, labels, 0.2))
    assert scores["exact_match"] == pytest.approx(metrics.accuracy_score(true, predicted))
    occurring = np.flatnonzero((true | predicted).any(0))
    for average in ("macro", "micro", "weighted"):
        expected = metrics.f1_score(true, predicted, labels=occurring, average=average, zero_division=0)
        assert scores[f"{average}_f1"] == pytest.approx(expected)
    after_training = score_label_sets(predicted, true, labels)
    assert scores["macro_f1"] == pytest.approx(after_training.macro_f1)
    assert scores["micro_f1"] == pytest.approx(after_training.micro_f1)


def test_no_labels_at_all_have_an_exact_match_only() -> None:
    measured = measure_label_sets(np.zeros((3, 2)), np.zeros((3, 2), bool), ["a", "b"], 0.5)
    assert defined(measured) == {"exact_match": 1}


def test_scores_of_numbers_are_those_worked_by_hand() -> None:
    scores = defined(measure_numbers(np.array([1.0, 3.0, 2.0]), np.array([1.0, 2.0, 6.0])))
    assert scores == pytest.approx(
        {
            "mean_squared_error": (0 + 1 + 16) / 3,
            "mean_absolute_error": (0 + 1 + 4) / 3,
            "r2": 1 - 17 / 14,
            # Distances from the means: (-1, 1, 0) and (-2, -1, 3).
            "pearson": (2 - 1 + 0) / math.sqrt(2 * 14),
        }
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("offset", [0, 1e6])
def test_scores_of_numbers_equal_those_of_scikit_learn_and_scipy(seed: int, offset: float) -> None:
    generator = np.random.default_rng(seed)
    true = offset + generator.normal(0, 2, 50)
    predicted = true + generator.normal(1, 3, 50)
    scores = defined(measure_numbers(predicted, true))
    assert scores["mean_squared_error"] == pytest.approx(metrics.mean_squared_error(true, predicted))
    assert scores["mean_absolute_error"] == pytest.approx(metrics.mean_absolute_error(true, predicted))
    assert scores["r2"] == pytest.approx(metrics.r2_score(true, predicted))
    assert scores["pearson"] == pytest.approx(stats.pearsonr(true, predicted).statistic)
    after_training = score_numbers(predicted, true)
    assert scores["pearson"] == pytest.approx(after_training.pearson)


def test_what_constant_numbers_leave_undefined_is_left_out() -> None:
    # Of 8 numbers of 0.1, rounding leaves a sum of squared distances that is above 0.
    constant, varying = np.full(8, 0.1), np.arange(8) / 7
    errors = ["mean_squared_error", "mean_absolute_error"]
    assert list(defined(measure_numbers(varying, constant))) == errors
    assert list(defined(measure_numbers(constant, varying))) == [*errors, "r2"]
    assert list(defined(measure_numbers(np.array([3.0]), np.array([1.0])))) == errors


def test_perfect_numbers_have_perfect_scores() -> None:
    numbers = np.array([1.0, 2.0, 4.0])
    assert defined(measure_numbers(numbers, numbers)) == pytest.approx(
        {"mean_squared_error": 0, "mean_absolute_error": 0, "r2": 1, "pearson": 1}
    )


def test_intervals_of_all_scores_hold_the_scores() -> None:
    probabilities, true = random_labels(9, 2)
    generator = np.random.default_rng(0)
    numbers = generator.normal(0, 1, 50)
    several = generator.random((50, 3))
    for measured, count in (
        (measure_labels(probabilities, true, ["ham", "spam"]), 9),
        (measure_label_sets(several, several > 0.4, ["a", "b", "c"], 0.5), 4),
        (measure_numbers(numbers + generator.normal(0, 1, 50), numbers), 4),
    ):
        scores = scores_of(measured, seed=0, resamples=200)
        assert len(scores) == count
        assert all(score.low <= score.value <= score.high for score in scores)
        assert all(score.low < score.high for score in scores)


def test_a_classifier_is_told_from_one_that_knows_less() -> None:
    generator = np.random.default_rng(0)
    true = generator.integers(0, 2, 400)
    classifiers = []
    for knowledge in (1.0, 4.0):
        p_spam = 1 / (1 + np.exp(-knowledge * (true - 0.5) - generator.normal(0, 1, 400)))
        classifiers.append(measure_labels(np.stack([1 - p_spam, p_spam], 1), true, ["ham", "spam"]))
    found = {difference.name: difference for difference in differences(*classifiers, seed=0)}
    for name in ("accuracy", "macro_f1", "f1_spam", "log_loss"):
        assert found[name].better == 1
        assert found[name].p_value < 0.001
