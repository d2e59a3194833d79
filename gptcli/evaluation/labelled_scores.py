"""What is measured of each labelled example, so that its scores get intervals and can be compared.

The scores are those of `classification`, and what the probabilities add to them, as functions of sums
over examples, the form that `bootstrap` takes. Precision, recall and F1 are 0 where they would divide by
0; they are undefined, and so left out, only if a label is neither true nor predicted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gptcli.evaluation.bootstrap import MAX_GROUPS, Measured, Metric, grouped, in_blocks
from gptcli.evaluation.calibration import confidence_bins

CALIBRATION_BINS = 15


def measure_labels(probabilities: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> Measured:
    """Return what examples with one label each give.

    probabilities: (examples, labels); the likeliest is predicted, of equals the first.
    true: (examples,) numbers of labels; the label numbered n is labels[n].
    """
    count = len(labels)
    assert probabilities.shape == (len(true), count) and len(true)
    if len(true) <= MAX_GROUPS:
        items = _label_items(probabilities, true)
    else:  # With many labels, the columns of all examples could take any memory.
        items = grouped(_label_items(probabilities[part], true[part]) for part in in_blocks(len(true)))

    def examples_in(sums: np.ndarray) -> np.ndarray:
        number: np.ndarray = _per_label(sums, count)[2].sum(1)
        return number

    metrics = [
        Metric(
            "accuracy",
            "share of examples whose label is right",
            lambda sums: _ratio(_per_label(sums, count)[0].sum(1), examples_in(sums)),
            items_of=examples_in,
        ),
        # With one label each, the micro F1 is the accuracy.
        *[
            replace(metric, items_of=examples_in) if metric.name == "micro_f1" else metric
            for metric in _f1_metrics(count)
        ],
        *(_metrics_of_second(labels[1]) if count == 2 else []),
        Metric(
            "log_loss",
            "mean of -ln p of the true label",
            lambda sums: _ratio(sums[:, 3 * count], examples_in(sums)),
            is_better_higher=False,
        ),
        Metric(
            "ece",
            f"expected calibration error: how far confidence is from accuracy, {CALIBRATION_BINS} bins",
            lambda sums: _ratio(np.abs(sums[:, 3 * count + 1 :]).sum(1), examples_in(sums)),
            is_better_higher=False,
        ),
    ]
    return Measured(items, metrics, "examples")


def _label_items(probabilities: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return (examples, columns): those of `_per_label`, -ln p(true), the overconfidence in each bin."""
    count = probabilities.shape[1]
    examples = np.arange(len(true))
    predicted = probabilities.argmax(1)
    is_right = predicted == true
    confidence = probabilities[examples, predicted].astype(np.float64)
    of_true = probabilities[examples, true].astype(np.float64)
    items = np.zeros((len(true), 3 * count + 1 + CALIBRATION_BINS))
    items[examples, predicted] = is_right
    items[examples, count + predicted] = 1
    items[examples, 2 * count + true] = 1
    # A float32 that is 0 may have been any number below its smallest normal one.
    items[:, 3 * count] = -np.log(of_true.clip(np.finfo(np.float32).tiny))
    bin_of = confidence_bins(confidence, CALIBRATION_BINS)
    items[examples, 3 * count + 1 + bin_of] = confidence - is_right
    return items


def measure_label_sets(
    probabilities: np.ndarray, true: np.ndarray, labels: Sequence[str], threshold: float
) -> Measured:
    """Return what examples with any number of labels each give.

    probabilities: (examples, labels); those of at least `threshold` are predicted.
    true: (examples, labels), nonzero where an example has a label.
    """
    count = len(labels)
    assert probabilities.shape == true.shape == (len(true), count) and len(true)
    true = true.astype(bool)
    predicted = probabilities >= threshold
    is_exact = (predicted == true).all(1, keepdims=True)
    # As `_per_label` reads them, then whether all are right, and 1 to count the examples.
    columns = [predicted & true, predicted, true, is_exact, np.ones_like(is_exact)]
    metrics = [
        Metric(
            "exact_match",
            "share of examples with all their labels and no others",
            lambda sums: _ratio(sums[:, 3 * count], sums[:, 3 * count + 1]),
            items_of=lambda sums: sums[:, 3 * count + 1],
        ),
        *_f1_metrics(count),
    ]
    return Measured(np.concatenate(columns, 1).astype(np.float64), metrics, "examples")


def measure_numbers(predicted: np.ndarray, true: np.ndarray) -> Measured:
    """Return what examples with a number each give.

    predicted, true: (examples,). R2 and Pearson's correlation are undefined where the true numbers, and
    the latter also where the predictions, are all but constant.
    """
    assert predicted.shape == true.shape == (len(true),) and len(true)
    true = true.astype(np.float64)
    # Squares of numbers far from 0 would leave no digits to what tells them apart. Both are moved by the
    # same distance, one that is the same for every model.
    centre = true.mean()
    x, y = predicted.astype(np.float64) - centre, true - centre
    items = np.stack([np.ones(len(true)), (x - y) ** 2, np.abs(x - y), x, y, x * x, y * y, x * y], 1)
    metrics = [
        Metric(
            "mean_squared_error",
            "mean squared distance from the true number",
            lambda sums: _ratio(sums[:, 1], sums[:, 0]),
            is_better_higher=False,
        ),
        Metric(
            "mean_absolute_error",
            "mean distance from the true number",
            lambda sums: _ratio(sums[:, 2], sums[:, 0]),
            is_better_higher=False,
        ),
        Metric("r2", "1 - squared error / that of the mean of the true numbers", _r2),
        Metric("pearson", "correlation with the true numbers, -1 to 1", _pearson),
    ]
    return Measured(items, metrics, "examples")


def _f1_metrics(count: int) -> list[Metric]:
    """Return the metrics that take the columns of `count` labels together."""

    def micro_f1(sums: np.ndarray) -> np.ndarray:
        right, predicted, true = (columns.sum(1) for columns in _per_label(sums, count))
        return _ratio(2 * right, predicted + true)

    def macro_f1(sums: np.ndarray) -> np.ndarray:
        f1, occurs = _f1_of_each(sums, count)
        return _ratio(f1.sum(1), occurs.sum(1))

    def weighted_f1(sums: np.ndarray) -> np.ndarray:
        f1, _ = _f1_of_each(sums, count)
        true = _per_label(sums, count)[2]
        return _ratio((f1 * true).sum(1), true.sum(1))

    return [
        Metric("macro_f1", "mean of the F1 of every label that is true or predicted", macro_f1),
        Metric("micro_f1", "F1 over all labels together", micro_f1),
        Metric("weighted_f1", "mean F1, each label as often as it is true", weighted_f1),
    ]


def _metrics_of_second(label: str) -> list[Metric]:
    """Return precision, recall and F1 of the second of two labels."""

    def of_second(share: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        def of_sums(sums: np.ndarray) -> np.ndarray:
            right, predicted, true = (columns[:, 1] for columns in _per_label(sums, 2))
            return np.where(predicted + true > 0, share(right, predicted, true), np.nan)

        return of_sums

    # These are counts: where one is 0, nothing is right either.
    return [
        Metric(
            f"precision_{label}",
            f"share of those predicted {label} that are",
            of_second(lambda right, predicted, true: right / np.maximum(predicted, 1)),
        ),
        Metric(
            f"recall_{label}",
            f"share of those truly {label} that are found",
            of_second(lambda right, predicted, true: right / np.maximum(true, 1)),
        ),
        Metric(
            f"f1_{label}",
            f"harmonic mean of precision and recall of {label}",
            of_second(lambda right, predicted, true: 2 * right / np.maximum(predicted + true, 1)),
        ),
    ]


def _per_label(sums: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (draws, count) each: examples rightly predicted, predicted, and true, of each label."""
    return sums[:, :count], sums[:, count : 2 * count], sums[:, 2 * count : 3 * count]


def _f1_of_each(sums: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (draws, count) each: the F1 of each label, and whether it is true or predicted at all."""
    right, predicted, true = _per_label(sums, count)
    both = predicted + true
    return 2 * right / np.maximum(both, 1), both > 0


def _r2(sums: np.ndarray) -> np.ndarray:
    count, squared_error, y, yy = (sums[:, column] for column in (0, 1, 4, 6))
    return 1 - _ratio(squared_error, _spread(yy, y, count))


def _pearson(sums: np.ndarray) -> np.ndarray:
    count, x, y, xx, yy, xy = (sums[:, column] for column in (0, 3, 4, 5, 6, 7))
    size = np.sqrt(_spread(xx, x, count)) * np.sqrt(_spread(yy, y, count))
    # Rounding may lead past the ends.
    return _ratio(xy - _ratio(x * y, count), size).clip(-1, 1)


def _spread(squares: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the sum of squared distances from the mean; 0 where rounding leaves nothing of it."""
    spread = squares - _ratio(total * total, count)
    return np.where(spread > 1e-12 * squares, spread, 0.0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, and NaN where whole is 0."""
    ratio: np.ndarray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return ratio
