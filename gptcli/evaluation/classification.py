"""How well labels, sets of labels and numbers are predicted: accuracy, F1, correlation.

Precision is the share of a label's predictions that are right, recall the share of its examples that
are found, F1 their harmonic mean: 2 * right / (predicted + true). All three are 0 where they would
divide by 0. The macro F1 is the mean of the F1 of every label that is true or predicted at least once;
a label that is neither says nothing of the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LabelScore:
    """The score of one label; see the module."""

    precision: float
    recall: float
    f1: float
    support: int
    """Examples that truly have the label."""


@dataclass(frozen=True)
class LabelScores:
    """The scores of examples that have one label each."""

    accuracy: float
    """Share of examples whose label is right."""
    macro_f1: float
    per_label: dict[str, LabelScore]
    confusion: list[list[int]]
    """Examples by true label (row) and predicted label (column)."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class LabelSetScores:
    """The scores of examples that have any number of labels each."""

    exact_match: float
    """Share of examples with all their labels and no others."""
    micro_f1: float
    """F1 over all labels together, each (example, label) counted once."""
    macro_f1: float
    per_label: dict[str, LabelScore]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class NumberScores:
    """The scores of predicted numbers. What is None is undefined."""

    mean_squared_error: float
    mean_absolute_error: float
    pearson: float | None
    """Correlation in -1..1; None if either side is constant or not finite."""
    spearman: float | None
    """Pearson's correlation of the ranks; equal numbers share the mean of their ranks."""
    r2: float | None
    """1 - squared error / squared distance of the true numbers from their mean: 1 is perfect, 0 is as
    good as that mean. None if the true numbers are constant or anything is not finite."""

    def as_dict(self) -> dict[str, float]:
        """Return the scores that are defined: JSON has no NaN, and a score has to be a number."""
        return {name: score for name, score in asdict(self).items() if score is not None}


def score_labels(predicted: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> LabelScores:
    """Return the scores of at least one example; the label numbered n is labels[n].

    predicted, true: (examples,) numbers of labels.
    """
    assert predicted.shape == true.shape and len(true)
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (true, predicted), 1)
    right = confusion.diagonal()
    per_label = _score_each(right, confusion.sum(0), confusion.sum(1), labels)
    return LabelScores(
        accuracy=float(right.sum() / len(true)),
        macro_f1=_macro_f1(per_label, confusion.sum(0)),
        per_label=per_label,
        confusion=confusion.tolist(),
    )


def score_label_sets(predicted: np.ndarray, true: np.ndarray, labels: Sequence[str]) -> LabelSetScores:
    """Return the scores of at least one example.

    predicted, true: (examples, labels), nonzero where an example has a label.
    """
    assert predicted.shape == true.shape == (len(true), len(labels)) and len(true)
    predicted, true = predicted.astype(bool), true.astype(bool)
    right, predicted_counts, true_counts = (predicted & true).sum(0), predicted.sum(0), true.sum(0)
    per_label = _score_each(right, predicted_counts, true_counts, labels)
    both = predicted_counts.sum() + true_counts.sum()
    return LabelSetScores(
        exact_match=float((predicted == true).all(1).mean()),
        micro_f1=float(2 * right.sum() / both) if both else 0.0,
        macro_f1=_macro_f1(per_label, predicted_counts),
        per_label=per_label,
    )


def score_numbers(predicted: np.ndarray, true: np.ndarray) -> NumberScores:
    """Return the scores of at least one example.

    predicted, true: (examples,). Where predictions are not finite, neither are the errors.
    """
    assert predicted.shape == true.shape == (len(true),) and len(true)
    predicted, true = predicted.astype(np.float64), true.astype(np.float64)
    # A model that has diverged predicts NaN and infinities; the errors tell that.
    with np.errstate(over="ignore", invalid="ignore"):
        distances = predicted - true
        pearson = spearman = r2 = None
        if _varies(true) and np.isfinite(predicted).all():
            centred = true - true.mean()
            # Squares of very small numbers would be 0.
            size = np.abs(centred).max()
            r2 = float(1 - ((distances / size) ** 2).sum() / ((centred / size) ** 2).sum())
            if _varies(predicted):
                pearson = _correlation(predicted, true)
                spearman = _correlation(_ranks(predicted), _ranks(true))
        return NumberScores(
            mean_squared_error=float((distances**2).mean()),
            mean_absolute_error=float(np.abs(distances).mean()),
            pearson=pearson,
            spearman=spearman,
            r2=r2,
        )


def _score_each(
    right: np.ndarray, predicted: np.ndarray, true: np.ndarray, labels: Sequence[str]
) -> dict[str, LabelScore]:
    """Return the score of each label from counts of examples, each (labels,)."""
    rows = zip(
        labels,
        _ratio(right, predicted).tolist(),
        _ratio(right, true).tolist(),
        _ratio(2 * right, predicted + true).tolist(),
        true.tolist(),
        strict=True,
    )
    return {label: LabelScore(*scores) for label, *scores in rows}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, and 0 where whole is 0."""
    ratio: np.ndarray = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio


def _macro_f1(per_label: dict[str, LabelScore], predicted_counts: np.ndarray) -> float:
    occurring = [
        score.f1
        for score, predicted in zip(per_label.values(), predicted_counts, strict=True)
        if predicted or score.support
    ]
    return sum(occurring) / len(occurring) if occurring else 0.0


def _varies(numbers: np.ndarray) -> bool:
    """Return whether the numbers are finite and not all equal."""
    # Of the numbers themselves: the mean of equal numbers may be off by a rounding.
    return 0 < float(np.ptp(numbers)) < math.inf


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Return Pearson's correlation of numbers that vary, (examples,) each."""
    directions = []
    for numbers in (left, right):
        centred = numbers - numbers.mean()
        centred /= np.abs(centred).max()  # Squares of very small numbers would be 0.
        directions.append(centred / np.linalg.norm(centred))
    # Rounding may lead past the ends.
    return float(np.clip(directions[0] @ directions[1], -1, 1))


def _ranks(numbers: np.ndarray) -> np.ndarray:
    """Return the ranks from 1; equal numbers share the mean of theirs."""
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[places]
    return ranks
