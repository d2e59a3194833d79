"""A classifier on labelled texts: scores, calibration, mistakes.

Texts stream through. What is kept of each are its probabilities and its label; its words are kept only
of those that are candidates for the lists at the end.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gptcli.config.schema import RuntimeSettings
from gptcli.data.input_rows import InputText
from gptcli.data.labelled_texts import LabelledText, Objective
from gptcli.errors import DataError
from gptcli.evaluation.bootstrap import Measured
from gptcli.evaluation.calibration import (
    average_precision,
    best_threshold,
    confident_mistakes,
    probable_label_errors,
    reliability_table,
    roc_auc,
)
from gptcli.evaluation.classification import score_label_sets, score_labels
from gptcli.evaluation.labelled_scores import measure_label_sets, measure_labels, measure_numbers
from gptcli.pipelines.classify import Classifier, Prediction

# Shown of the most confident mistakes and of the probable label errors.
LISTED = 10
# Texts kept as candidates for them.
CANDIDATES = 1000
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class LabelResult:
    """What was measured of a classifier."""

    measured: Measured
    details: dict[str, Any]
    count: int
    cut: int
    """Texts longer than the model's context, of which the front was read."""


class LabelTest:
    """A loaded classifier, to be compared with given labels."""

    def __init__(
        self,
        model: str,
        runtime: RuntimeSettings,
        labels: list[str] | None = None,
        order: list[str] | None = None,
    ) -> None:
        """labels: what a causal model is to choose from. order: in which labels are measured; that of
        the model if None. Raises ConfigError, ModelError.
        """
        self._classifier = Classifier(model, runtime, labels=labels)
        self.labels = self._classifier.labels if order is None else order
        self.objective: Objective = self._classifier.objective

    def measure(
        self,
        items: Iterable[LabelledText],
        progress: Callable[[int], None],
        on_sample: Callable[[dict[str, Any]], None],
    ) -> LabelResult:
        """Return what was measured of all items.

        Raises DataError for a label that the model does not know, and if there is no item.
        """
        outputs: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        candidates = _Candidates()
        given: deque[LabelledText] = deque()  # Filled where texts are read, which is in a thread.
        done = 0
        for predictions in self._classifier.predict(self._rows(items, given)):
            found = np.array([self._output(prediction) for prediction in predictions], np.float32)
            tested = [given.popleft() for _ in predictions]
            wanted = np.stack([self._target(item) for item in tested])
            for number, (item, prediction) in enumerate(zip(tested, predictions, strict=True), done):
                on_sample(self._sample(item, prediction))
                if self.objective == "single-label":
                    candidates.add(number, item, found[number - done], int(wanted[number - done]))
            outputs.append(found)
            targets.append(wanted)
            done += len(predictions)
            progress(done)
        if not done:
            raise DataError("There is no labelled text to test on.")
        output, target = np.concatenate(outputs), np.concatenate(targets)
        measured, details = self._measured(output, target, candidates)
        return LabelResult(measured, details, done, self._classifier.counts.cut)

    def _rows(self, items: Iterable[LabelledText], given: deque[LabelledText]) -> Iterator[InputText]:
        for item in items:
            for label in item.labels:
                if label not in self.labels:
                    raise DataError(
                        f"{item.where}: the label {label!r} is not one of the model's "
                        f"({', '.join(self.labels[:10])})."
                    )
            given.append(item)
            yield InputText(item.where, {}, item.text, item.text_pair)

    def _output(self, prediction: Prediction) -> np.ndarray:
        """Return (labels,) probabilities, or the number."""
        if prediction.probabilities is None:
            return np.array([prediction.number])
        return np.array([prediction.probabilities[label] for label in self.labels])

    def _target(self, item: LabelledText) -> np.ndarray:
        match self.objective:
            case "single-label":
                return np.array(self.labels.index(item.labels[0]))
            case "multi-label":
                return np.array([label in item.labels for label in self.labels])
            case "regression":
                return np.array(item.number)

    def _sample(self, item: LabelledText, prediction: Prediction) -> dict[str, Any]:
        wanted: Any = item.number
        if self.objective != "regression":
            wanted = item.labels[0] if self.objective == "single-label" else list(item.labels)
        found: Any = prediction.number
        if prediction.probabilities is not None:
            found = prediction.labels[0] if self.objective == "single-label" else prediction.labels
        probabilities = prediction.probabilities or {}
        return {
            "test": "labels",
            "where": item.where,
            "text": item.text,
            "label": wanted,
            "predicted": found,
            "probabilities": {label: round(p, 6) for label, p in probabilities.items()},
        }

    def _measured(
        self, output: np.ndarray, target: np.ndarray, candidates: _Candidates
    ) -> tuple[Measured, dict[str, Any]]:
        if self.objective == "regression":
            return measure_numbers(output[:, 0], target), {}
        if self.objective == "multi-label":
            sets = score_label_sets(output >= 0.5, target, self.labels).as_dict()
            details = {"per_label": sets["per_label"]}
            return measure_label_sets(output, target, self.labels, 0.5), details
        scores = score_labels(output.argmax(1), target, self.labels).as_dict()
        details = {
            "labels": self.labels,
            "per_label": scores["per_label"],
            "confusion": scores["confusion"],
            "reliability": [asdict(row) for row in reliability_table(output, target)],
            "confident_mistakes": [
                self._shown(candidates.of[number], output[number])
                for number in confident_mistakes(output, target, LISTED)
                if number in candidates.of
            ],
            "probable_label_errors": [
                self._shown(candidates.of[error.example], output[error.example], error.suspected)
                for error in probable_label_errors(output, target, CANDIDATES)
                if error.example in candidates.of
            ][:LISTED],
        }
        if len(self.labels) == 2:
            details |= self._of_two_labels(output[:, 1], target == 1)
        return measure_labels(output, target, self.labels), details

    def _shown(
        self, item: LabelledText, output: np.ndarray, suspected: int | None = None
    ) -> dict[str, Any]:
        number = int(output.argmax()) if suspected is None else suspected
        text = " ".join(item.text.split())
        return {
            "where": item.where,
            "text": text[:SHOWN_CHARACTERS],
            "label": item.labels[0],
            "predicted": self.labels[number],
            "probability": round(float(output[number]), 4),
        }

    def _of_two_labels(self, probability: np.ndarray, is_second: np.ndarray) -> dict[str, Any]:
        best = best_threshold(probability, is_second)
        return {
            "second_label": {
                "label": self.labels[1],
                "roc_auc": roc_auc(probability, is_second),
                "average_precision": average_precision(probability, is_second),
                # Chosen on these very items, so that its F1 is the best case.
                "best_threshold": None if best is None else asdict(best),
            }
        }


class _Candidates:
    """The items that the model contradicts most: not all texts have to be kept."""

    def __init__(self) -> None:
        self.of: dict[int, LabelledText] = {}
        """{number of the item: item}"""
        self._by_lead: list[tuple[float, int]] = []

    def add(self, number: int, item: LabelledText, probabilities: np.ndarray, label: int) -> None:
        """Keep the item if another label is, by its lead, among the likeliest instead."""
        lead = float(np.delete(probabilities, label).max() - probabilities[label])
        self.of[number] = item
        heapq.heappush(self._by_lead, (lead, number))
        if len(self._by_lead) > CANDIDATES:
            del self.of[heapq.heappop(self._by_lead)[1]]
