"""What the probabilities of a classifier are worth: calibration, mistakes, wrong labels, thresholds.

1. `reliability_table` compares how sure the classifier is with how often it is right;
2. `confident_mistakes` finds the examples that it gets most surely wrong;
3. `probable_label_errors` finds those whose given label is probably the mistake;
4. `best_threshold`, `roc_auc` and `average_precision` tell, of two labels, how well the probability of
   the second separates them, and where to cut.

Probabilities are (examples, labels); the label of an example is its likeliest, of equals the first; that
label's probability is its confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReliabilityRow:
    """The examples whose confidence is above `low` and at most `high`."""

    low: float
    high: float
    examples: int
    mean_confidence: float
    accuracy: float
    """Share of the examples whose label is right: as high as the confidence, if that is calibrated."""


@dataclass(frozen=True)
class LabelError:
    """An example that was probably given a wrong label."""

    example: int
    """Its number, from 0."""
    suspected: int
    """The number of the label that it should probably have."""


@dataclass(frozen=True)
class Threshold:
    """From which probability on to say that an example has the second label."""

    threshold: float
    f1: float
    """F1 of the second label, if it is said of the examples with at least that probability."""
    f1_at_half: float
    """F1 if the likelier label is said: the second from above 0.5 on."""


def confidence_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return (examples,): which of `bins` equal parts of 0..1 each lies in, from 0.

    confidence: (examples,). As in Guo et al. 2017, "On Calibration of Modern Neural Networks", the upper
    end belongs to a part, the lower one does not.
    """
    numbers: np.ndarray = np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1
    return numbers.clip(0, bins - 1)


def reliability_table(
    probabilities: np.ndarray, true: np.ndarray, bins: int = 10
) -> list[ReliabilityRow]:
    """Return a row for each of `bins` equal parts of 0..1 that holds the confidence of any example.

    probabilities: (examples, labels). true: (examples,) numbers of labels.
    """
    confidence = probabilities.max(1).astype(np.float64)
    is_right = probabilities.argmax(1) == true
    bin_of = confidence_bins(confidence, bins)
    rows = []
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number
        rows.append(
            ReliabilityRow(
                low=number / bins,
                high=(number + 1) / bins,
                examples=int(inside.sum()),
                mean_confidence=float(confidence[inside].mean()),
                accuracy=float(is_right[inside].mean()),
            )
        )
    return rows


def confident_mistakes(probabilities: np.ndarray, true: np.ndarray, limit: int) -> list[int]:
    """Return the numbers of at most `limit` wrongly labelled examples, the most confident first.

    probabilities: (examples, labels). true: (examples,) numbers of labels.
    """
    wrong = np.flatnonzero(probabilities.argmax(1) != true)
    order = np.argsort(-probabilities.max(1)[wrong], kind="stable")
    most_confident: list[int] = wrong[order[:limit]].tolist()
    return most_confident


def probable_label_errors(probabilities: np.ndarray, true: np.ndarray, limit: int) -> list[LabelError]:
    """Return at most `limit` examples that were probably given a wrong label, the likeliest first.

    Confident learning (Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset
    Labels"): a label's threshold is the mean of its probability over the examples that were given it; an
    example is suspect if the likeliest of the labels that reach their threshold is another than its own.
    They are ranked by how much likelier that one is, which is less than 0 where the given label is the
    likeliest, but less likely than usual. The model must not have been trained on these examples: what
    it has learned by heart it does not doubt.

    probabilities: (examples, labels). true: (examples,) numbers of the given labels.
    """
    probabilities = probabilities.astype(np.float64)
    # A label that is given to no example has no threshold to reach.
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(true):
        thresholds[label] = probabilities[true == label, label].mean()
    # The mean of equal numbers may be above them by a rounding.
    confident = np.where(probabilities >= thresholds - 1e-9, probabilities, -np.inf)
    suspected = confident.argmax(1)
    suspect = np.flatnonzero(np.isfinite(confident).any(1) & (suspected != true))
    lead = probabilities[suspect, suspected[suspect]] - probabilities[suspect, true[suspect]]
    likeliest = suspect[np.argsort(-lead, kind="stable")[:limit]]
    return [LabelError(example, int(suspected[example])) for example in likeliest.tolist()]


def best_threshold(probability_of_second: np.ndarray, is_second: np.ndarray) -> Threshold | None:
    """Return the threshold with the highest F1 of the second of two labels; None if no example has it.

    probability_of_second: (examples,), 0 to 1. is_second: (examples,) bool.
    The threshold lies midway between two neighbouring probabilities, or between 0 and the lowest; of
    several that are equally good it is the one nearest to 0.5.
    """
    distinct, right, predicted = _cumulative_counts(probability_of_second, is_second)
    seconds = int(right[-1])
    if not seconds:
        return None
    f1 = 2 * right / (predicted + seconds)
    below = np.append(distinct[1:], 0.0)
    thresholds = below / 2 + distinct / 2
    # Midway between neighbours among floats is one of the two.
    thresholds = np.where(thresholds > below, thresholds, distinct)
    best = np.flatnonzero(f1 == f1.max())
    chosen = best[np.abs(thresholds[best] - 0.5).argmin()]
    # What is 0.5 goes to the first label, as everywhere.
    above_half = int((distinct > 0.5).sum())
    return Threshold(
        threshold=float(thresholds[chosen]),
        f1=float(f1[chosen]),
        f1_at_half=float(f1[above_half - 1]) if above_half else 0.0,
    )


def roc_auc(probability_of_second: np.ndarray, is_second: np.ndarray) -> float | None:
    """Return how often an example with the second label has a higher probability of it than one without.

    Equal probabilities count half. That is the area under the receiver operating characteristic: 0.5 is
    chance, 1 perfect. None unless there are examples of both labels.

    probability_of_second: (examples,). is_second: (examples,) bool.
    """
    _, right, predicted = _cumulative_counts(probability_of_second, is_second)
    wrong = predicted - right
    if not right[-1] or not wrong[-1]:
        return None
    hits = np.append(0, right) / right[-1]
    false_alarms = np.append(0, wrong) / wrong[-1]
    return float(np.trapezoid(hits, false_alarms))


def average_precision(probability_of_second: np.ndarray, is_second: np.ndarray) -> float | None:
    """Return the mean precision over the examples with the second label, each at its own probability.

    That is the area under the precision-recall curve without interpolation, as scikit-learn has it.
    None if no example has the second label.

    probability_of_second: (examples,). is_second: (examples,) bool.
    """
    _, right, predicted = _cumulative_counts(probability_of_second, is_second)
    if not right[-1]:
        return None
    return float((np.diff(right, prepend=0) * right / predicted).sum() / right[-1])


def _cumulative_counts(
    probability: np.ndarray, is_second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct probabilities, the highest first, and what is predicted from each on.

    Each is (distinct,): the probabilities; how many examples with the second label have that or a higher
    one; how many examples at all.
    """
    assert probability.shape == is_second.shape == (len(probability),) and len(probability)
    # No threshold separates equal probabilities.
    distinct, number_of = np.unique(-probability.astype(np.float64), return_inverse=True)
    right = np.bincount(number_of, weights=is_second.astype(np.float64)).cumsum()
    return -distinct, right, np.bincount(number_of).cumsum()
