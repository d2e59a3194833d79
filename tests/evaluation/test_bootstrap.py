from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gptcli.evaluation.bootstrap import (
    MAX_GROUPS,
    Difference,
    Measured,
    Metric,
    Score,
    differences,
    scores_of,
)


def quotient(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[:, 0] / sums[:, 1])


def measure_mean(values: np.ndarray) -> Measured:
    items = np.stack([values, np.ones(len(values))], 1)
    return Measured(items, [Metric("mean", "mean", quotient)], "numbers")


def measure_f1(predicted: np.ndarray, true: np.ndarray) -> Measured:
    items = np.stack([2 * (predicted & true), predicted.astype(int) + true], 1).astype(np.float64)
    return Measured(items, [Metric("f1", "F1", quotient)], "texts")


def only_score(measured: Measured, *, seed: int = 0, resamples: int = 1000) -> Score:
    (score,) = scores_of(measured, seed=seed, resamples=resamples)
    return score


def only_difference(
    first: Measured, second: Measured, *, seed: int = 0, resamples: int = 1000
) -> Difference:
    (difference,) = differences(first, second, seed=seed, resamples=resamples)
    return difference


def test_the_same_seed_gives_the_same_result_and_another_another() -> None:
    generator = np.random.default_rng(0)
    for size in (50, MAX_GROUPS + 50):
        first, second = (measure_mean(generator.normal(0, 1, size)) for _ in range(2))
        scores = [only_score(first, seed=seed, resamples=100) for seed in (3, 3, 4)]
        assert scores[0] == scores[1]
        assert scores[0].value == scores[2].value
        assert scores[0].low != scores[2].low
        found = [only_difference(first, second, seed=seed, resamples=100) for seed in (3, 3, 4)]
        assert found[0] == found[1]
        assert (found[0].low, found[0].high) != (found[2].low, found[2].high)


def test_the_value_of_a_score_is_that_of_all_items() -> None:
    # Beyond MAX_GROUPS, too, no item is left out.
    for size in (10, MAX_GROUPS + 7):
        assert only_score(measure_mean(np.arange(size)), resamples=2).value == (size - 1) / 2


def test_the_interval_of_a_quotient_is_that_of_scipy() -> None:
    generator = np.random.default_rng(1)
    true = generator.random(300) < 0.4
    measured = measure_f1(np.where(generator.random(300) < 0.8, true, ~true), true)
    score = only_score(measured, resamples=5000)
    expected = stats.bootstrap(
        measured.items.T,
        lambda both, whole, axis: both.sum(axis) / whole.sum(axis),
        n_resamples=5000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=2,
    )
    # An end varies by some 5% of the standard error from 5000 draws to others: two are within 6 such.
    tolerance = 6 * 0.05 * expected.standard_error
    assert score.low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
    assert score.high == pytest.approx(expected.confidence_interval.high, abs=tolerance)


@pytest.mark.parametrize("size", [2000, 4 * MAX_GROUPS, 2 * MAX_GROUPS - 1])
def test_the_interval_of_a_mean_is_that_of_the_normal_distribution_in_groups_or_not(size: int) -> None:
    # In order, so that groups of neighbours would be too different from each other; and, with the last
    # size, all groups but one of two items.
    values = np.sort(np.random.default_rng(2).exponential(1, size))
    error = values.std() / np.sqrt(size)
    score = only_score(measure_mean(values), resamples=2000)
    # An end varies by 6% of the standard error from 2000 draws to others.
    assert score.low == pytest.approx(values.mean() - 1.96 * error, abs=0.3 * error)
    assert score.high == pytest.approx(values.mean() + 1.96 * error, abs=0.3 * error)
    assert score.high - score.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_interval_holds_the_truth_in_19_of_20_cases() -> None:
    cases, held = 300, 0
    for seed in range(cases):
        score = only_score(measure_mean(np.random.default_rng(seed).normal(5, 1, 100)), resamples=400)
        held += score.low <= 5 <= score.high
    # 0.94 is what the percentile interval of 100 items has; one case of 1000 lies outside.
    low, high = stats.binom.interval(0.999, cases, 0.94)
    assert low <= held <= high


def test_an_undefined_score_is_left_out_and_undefined_draws_are_too() -> None:
    nothing = Measured(np.zeros((5, 2)), [Metric("f1", "F1", quotient)], "texts")
    assert scores_of(nothing, seed=0) == []
    assert differences(nothing, nothing, seed=0) == []
    # 8% of the draws of 5 items have neither of the two that count; 25% have only the one, or the other.
    rare = Measured(np.array([[1.0, 2.0], [2.0, 2.0]] + [[0.0, 0.0]] * 3), nothing.metrics, "texts")
    score = only_score(rare)
    assert (score.low, score.value, score.high) == (0.5, 0.75, 1.0)


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0]], ids=["one item", "equal items"])
def test_where_every_draw_is_the_same_no_interval_is_claimed(values: list[float]) -> None:
    score = only_score(measure_mean(np.array(values)))
    assert score.value == 3
    assert np.isnan([score.low, score.high]).all()


def test_identical_models_do_not_differ() -> None:
    measured = measure_mean(np.random.default_rng(0).normal(0, 1, 200))
    difference = only_difference(measured, measured)
    assert (difference.low, difference.high, difference.p_value) == (0, 0, 1)
    assert difference.better is None


@pytest.mark.parametrize(("is_better_higher", "better"), [(True, 1), (False, 0)])
def test_a_difference_far_beyond_chance_is_real(is_better_higher: bool, better: int) -> None:
    generator = np.random.default_rng(0)
    models = []
    for rate in (0.6, 0.9):
        items = np.stack([generator.random(500) < rate, np.ones(500)], 1).astype(np.float64)
        models.append(Measured(items, [Metric("m", "mean", quotient, is_better_higher)], "texts"))
    difference = only_difference(*models)
    # None of 10,000 exchanges gives as much.
    assert difference.p_value == pytest.approx(1 / 10_001)
    assert 0 < difference.low < difference.second - difference.first < difference.high
    assert difference.better == better


@pytest.mark.parametrize("columns", [2, 3])
def test_chance_alone_seems_real_in_1_of_20_cases(columns: int) -> None:
    """With a third column in one model, results cannot be exchanged, and draws are compared instead."""
    cases = 200
    p_values = []
    for seed in range(cases):
        values = np.random.default_rng(seed).normal(0, 1, (2, 60))
        first, second = (measure_mean(numbers) for numbers in values)
        wider = np.pad(second.items, ((0, 0), (0, columns - 2)))
        other = Measured(wider, second.metrics, "numbers")
        p_values.append(only_difference(first, other, seed=seed, resamples=200).p_value)
    # One case of 1000 lies outside. Draws are a little too sure of few items: see above.
    low, high = stats.binom.interval(0.999, cases, 0.05 if columns == 2 else 0.06)
    assert low <= sum(p < 0.05 for p in p_values) <= high
    assert stats.kstest(p_values, "uniform").pvalue > 0.001


@pytest.mark.parametrize("seed", range(10))
def test_the_p_value_of_a_mean_is_that_of_the_exact_test_of_scipy(seed: int) -> None:
    first, second = np.random.default_rng(seed).normal([[0.0], [0.6]], 1, (2, 10))
    expected = stats.permutation_test(
        (first, second),
        lambda one, two, axis: two.mean(axis) - one.mean(axis),
        permutation_type="samples",
        vectorized=True,
    )
    found = only_difference(measure_mean(first), measure_mean(second))
    # The share of 10,000 random exchanges varies by at most 0.005.
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)


@pytest.mark.parametrize("seed", range(10))
def test_the_p_value_of_a_quotient_is_that_of_the_exact_test_of_scipy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    true = np.arange(12) < 7
    first, second = (np.where(generator.random(12) < rate, true, ~true) for rate in (0.5, 0.9))

    def f1_gap(one: np.ndarray, two: np.ndarray) -> float:
        f1 = [2 * (predicted & true).sum() / (predicted.sum() + 7) for predicted in (one, two)]
        return float(f1[1] - f1[0])

    expected = stats.permutation_test(
        (first, second), f1_gap, permutation_type="samples", vectorized=False
    )
    found = only_difference(measure_f1(first, true), measure_f1(second, true))
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)


@pytest.mark.parametrize("unit", [1e-12, 1e6, 1e12])
def test_the_unit_of_scores_does_not_change_p_values(unit: float) -> None:
    # Of 6 items, chance gives exactly the difference that was seen, or its opposite, in 1 of 32 cases.
    first, second = np.random.default_rng(1).normal([[0.0], [2.0]], 1, (2, 6))
    assert (second > first).all()
    found = only_difference(measure_mean(unit * first), measure_mean(unit * second))
    assert found.p_value == pytest.approx(1 / 32, abs=0.01)


def test_the_interval_of_a_difference_comes_from_the_same_items_of_both_models() -> None:
    generator = np.random.default_rng(0)
    difficulty, gain = generator.normal(0, 10, 500), generator.normal(1, 0.5, 500)
    found = only_difference(measure_mean(difficulty), measure_mean(difficulty + gain))
    error = gain.std() / np.sqrt(500)
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.4 * error)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.4 * error)


def test_models_are_compared_in_groups_as_well() -> None:
    size = 3 * MAX_GROUPS
    generator = np.random.default_rng(0)
    # In order, as above.
    difficulty = np.sort(generator.normal(0, 10, size))
    gain = generator.normal(0, 1, size)
    gain += 0.01 - gain.mean()
    found = only_difference(measure_mean(difficulty), measure_mean(difficulty + gain), resamples=200)
    error = gain.std() / np.sqrt(size)
    assert found.second - found.first == pytest.approx(0.01)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.3)
    # 2000 exchanges.
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.01 / error), abs=0.04)


def test_scores_that_only_one_model_has_are_not_compared() -> None:
    items = np.ones((4, 2))
    first, second = (
        Measured(items, [Metric(name, name, quotient) for name in names], "texts")
        for names in (("a", "b"), ("b", "c"))
    )
    assert [difference.name for difference in differences(first, second, seed=0)] == ["b"]


@pytest.mark.parametrize(("right", "expected"), [(0, (0.0, 0.2775)), (10, (0.7225, 1.0))])
def test_a_share_of_none_or_of_all_has_the_interval_of_wilson(
    right: int, expected: tuple[float, float]
) -> None:
    # z^2 / (n + z^2), with z = 1.959964 and n = 10: 0.2775.
    items = np.stack([np.ones(10), np.arange(10) < right], 1)
    share = Metric("acc", "", lambda sums: sums[:, 1] / sums[:, 0], items_of=lambda sums: sums[:, 0])
    (score,) = scores_of(Measured(items, [share], "items"), seed=0)
    assert (score.low, score.high) == pytest.approx(expected, abs=1e-4)
