"""Classification: texts in, labels with their probabilities out, in the order of the texts.

Texts are read in windows, sorted by length within a window, and go through the model in batches of like
length, so that there is little padding; memory does not grow with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.config.schema import RuntimeSettings
from gptcli.data.examples import Example, Examples
from gptcli.data.input_rows import InputText
from gptcli.data.labelled_texts import Objective
from gptcli.errors import ConfigError, DataError, ModelError
from gptcli.evaluation.label_likelihood import DEFAULT_TEMPLATE, LabelLikelihood
from gptcli.models.loading import LoadedModel, find_model, label_names, load_model, objective_of
from gptcli.tasks.assembly import ids_and_lengths
from gptcli.tasks.classification import class_logits, text_ids
from gptcli.training.device import choose_compute

# The first windows are small, so that the first results come soon.
FIRST_WINDOW, LARGEST_WINDOW = 32, 1024
WINDOW_CHARACTERS = 2**24
# Padding included. More of them need more padding; a GPU wants them all the same.
BATCH_TOKENS = {"cpu": 2048}
BATCH_TOKENS_GPU = 32_768


@dataclass(frozen=True)
class Prediction:
    """What the model says of one text."""

    row: InputText
    labels: list[str]
    """Of multi-label, those that are likely enough; else the likeliest; none of a blank text."""
    probabilities: dict[str, float] | None
    """{label: probability}, the likeliest first; None for regression, and of a blank text."""
    number: float | None = None
    """Of regression."""


@dataclass
class Counts:
    """What was met with on the way."""

    rows: int = 0
    blank: int = 0
    cut: int = 0
    """Texts of more tokens than the model's context, of which only the front was read."""
    labels: Counter[str] = field(default_factory=Counter)
    """{label: how many texts got it}"""

    def as_dict(self) -> dict[str, Any]:
        labels = dict(self.labels.most_common())
        return {"rows": self.rows, "blank": self.blank, "cut": self.cut, "labels": labels}


class ClassificationHead:
    """Scores the labels of a model that was trained to classify."""

    tokens_beside = 0
    """Tokens that every text takes with it through the model."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        loaded.model.score.float()  # As `class_logits` wants it.

    def encode(self, texts: list[tuple[str, str | None]]) -> list[tuple[list[int], bool]]:
        """Return the tokens of each text, or pair, and whether its end is cut off."""
        # As in training, the front is kept.
        limit = self._loaded.model.config.n_positions
        all_ids = text_ids(self._loaded.tokenizer, texts)
        return [(ids[:limit], len(ids) > limit) for ids in all_ids]

    def logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return (texts, labels) in float32, as `class_logits` does."""
        return class_logits(self._loaded.model, input_ids, lengths)


class Classifier:
    """A loaded model and what it tells apart."""

    def __init__(
        self,
        model_name: str,
        runtime: RuntimeSettings,
        *,
        labels: list[str] | None = None,
        template: str = DEFAULT_TEMPLATE,
        threshold: float | None = None,
    ) -> None:
        """labels: what a causal model is to choose from. threshold: of multi-label, 0.5 if None.

        Raises ConfigError, ModelError, EnvironmentProblem.
        """
        self._compute = choose_compute(runtime, for_training=False)
        where = (model_name, self._compute.device, self._compute.dtype)
        self._scorer: ClassificationHead | LabelLikelihood
        self.objective: Objective
        if labels is not None:
            found = find_model(model_name)
            if found.kind == "classification":
                raise ConfigError(
                    f"--labels is for a model without a classification head; {model_name} is a "
                    f"classifier of its own labels, {_listed(label_names(found.config))}. Leave it out."
                )
            loaded = load_model(*where)
            self._scorer = LabelLikelihood(loaded.model, loaded.tokenizer, labels, template)
            self.labels, self.objective = labels, "single-label"
        else:
            loaded = load_model(*where, kind="classification")
            self._scorer = ClassificationHead(loaded)
            self.labels, self.objective = (
                label_names(loaded.model.config),
                objective_of(loaded.model.config),
            )
        if len(set(self.labels)) < len(self.labels):
            (name, _), *_ = Counter(self.labels).most_common(1)
            raise ModelError(f"{loaded.name}: two of its labels are called {name!r} (id2label).")
        if threshold is not None and self.objective != "multi-label":
            raise ConfigError(f"--threshold is for several labels a text; {model_name} gives one.")
        self._threshold = 0.5 if threshold is None else threshold
        self._loaded = loaded
        self._batch_tokens = BATCH_TOKENS.get(self._compute.device.type, BATCH_TOKENS_GPU)
        self.context_length = int(loaded.model.config.n_positions)
        self.counts = Counts()

    def predict(self, rows: Iterable[InputText]) -> Iterator[list[Prediction]]:
        """Yield the predictions of all rows, in order, some at a time. Counts them in `counts`."""
        for window in _windows(rows):
            yield self._predict_window(window)

    def _predict_window(self, window: list[InputText]) -> list[Prediction]:
        worded = [row for row in window if not row.is_blank]
        outputs = iter(self._outputs(worded))
        predictions = [
            Prediction(row, [], None) if row.is_blank else self._prediction(row, next(outputs))
            for row in window
        ]
        self.counts.rows += len(window)
        self.counts.blank += len(window) - len(worded)
        self.counts.labels.update(label for item in predictions for label in item.labels)
        return predictions

    def _prediction(self, row: InputText, output: np.ndarray) -> Prediction:
        """output: (labels,) probabilities, or (1,) the number."""
        if self.objective == "regression":
            return Prediction(row, [], None, float(output[0]))
        order = np.argsort(-output, kind="stable")
        probabilities = {self.labels[n]: float(output[n]) for n in order}
        if self.objective == "multi-label":
            labels = [self.labels[n] for n in np.flatnonzero(output >= self._threshold)]
        else:
            labels = [self.labels[order[0]]]
        return Prediction(row, labels, probabilities)

    @torch.inference_mode()
    def _outputs(self, rows: list[InputText]) -> np.ndarray:
        """Return (rows, labels): probabilities, or the number of regression."""
        encoded = self._encode(rows)
        self.counts.cut += sum(is_cut for _, is_cut in encoded)
        self._loaded.check_token(max((max(ids) for ids, _ in encoded), default=0), "a text")
        examples = Examples(Example(ids, 0, "") for ids, _ in encoded)
        outputs = np.zeros((len(rows), len(self.labels)), np.float32)
        for numbers, width in self._batches(examples.lengths):
            batch = examples.batch(numbers.tolist())
            input_ids, lengths = ids_and_lengths(batch, self._compute)
            padded = F.pad(input_ids, (0, width - input_ids.shape[1]))
            logits = self._scorer.logits(padded, lengths)
            if not logits.isfinite().all():
                raise ModelError(
                    "The model's scores are not finite: its weights are damaged, or too large for this "
                    "--precision. Try --precision fp32."
                )
            outputs[numbers] = self._activated(logits).cpu().numpy()
        return outputs

    def _encode(self, rows: list[InputText]) -> list[tuple[list[int], bool]]:
        """Return the tokens of each text, or pair, and whether its end was cut off."""
        if isinstance(self._scorer, LabelLikelihood):
            return self._scorer.encode([row.text for row in rows])
        return self._scorer.encode([(row.text, row.text_pair) for row in rows])

    def _batches(self, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the numbers of each batch's texts, and how many tokens to pad them to.

        The longest come first, to see at once if they fit.
        """
        order = np.argsort(-lengths, kind="stable")
        first = 0
        while first < len(order):
            width = min(_rounded_up(int(lengths[order[first]])), self.context_length)
            count = max(1, self._batch_tokens // (width + self._scorer.tokens_beside))
            left = len(order) - first
            if count > left:  # Few different sizes; see _rounded_up.
                count = 1 << (left.bit_length() - 1)
            yield order[first : first + count], width
            first += count

    def _activated(self, logits: Tensor) -> Tensor:
        match self.objective:
            case "single-label":
                return logits.softmax(1)
            case "multi-label":
                return logits.sigmoid()
            case "regression":
                return logits


def _rounded_up(length: int) -> int:
    """Return the next length with 5 significant bits.

    Memory would grow with the number of different shapes that the model meets: oneDNN, which multiplies
    bfloat16 on CPUs, keeps something for each.
    """
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _windows(rows: Iterable[InputText]) -> Iterator[list[InputText]]:
    """Yield the rows, some at a time; those before one that cannot be read come before the error."""
    size, window, characters = FIRST_WINDOW, [], 0
    problem = None
    try:
        for row in rows:
            window.append(row)
            characters += len(row.text) + len(row.text_pair or "")
            if len(window) == size or characters > WINDOW_CHARACTERS:
                yield window
                size, window, characters = min(2 * size, LARGEST_WINDOW), [], 0
    except DataError as error:
        problem = error
    if window:
        yield window
    if problem is not None:
        raise problem


class Columns:
    """Names and values of what is predicted, beside the columns that a row has already."""

    def __init__(self, classifier: Classifier, top_k: int | None, separator: str) -> None:
        """top_k: probabilities of so many labels are shown, the likeliest; None: of all.

        separator: between several labels in one field. Raises ConfigError if there are no labels.
        """
        if top_k is not None and classifier.objective == "regression":
            raise ConfigError("--top-k is for labels; this model predicts a number.")
        self._objective = classifier.objective
        self.is_multi_label = classifier.objective == "multi-label"
        self._labels = classifier.labels
        self._top_k = top_k
        self._separator = separator

    def nested(self, item: Prediction) -> dict[str, Any]:
        """Return the row for JSON. Raises DataError if it has a column of such a name."""
        found = None
        if item.probabilities is not None:
            likeliest = list(item.probabilities.items())[: self._top_k]
            found = {label: _rounded(p) for label, p in likeliest}
        match self._objective:
            case "regression":
                return _beside(item.row, {"predicted_number": _rounded(item.number)})
            case "multi-label":
                labels = None if found is None else item.labels
                return _beside(item.row, {"predicted_labels": labels, "probabilities": found})
            case "single-label":
                return _beside(item.row, {**self._answer(item), "probabilities": found})

    def flat(self, item: Prediction) -> dict[str, Any]:
        """Return the row for CSV: the same columns for every row. Raises DataError as `nested` does."""
        match self._objective:
            case "regression":
                return self.nested(item)
            case "multi-label":
                answer: dict[str, Any] = {"predicted_labels": self._separator.join(item.labels)}
                first = 1
            case "single-label":
                answer, first = self._answer(item), 2
        found = item.probabilities or {}
        if self._top_k is None:
            for label in self._labels:
                answer[f"probability_{label}"] = _rounded(found.get(label))
        else:
            ranked = list(found)
            for rank in range(first, min(self._top_k, len(self._labels)) + 1):
                name = ranked[rank - 1] if ranked else None
                answer[f"predicted_label_{rank}"] = name
                answer[f"probability_{rank}"] = _rounded(found.get(str(name)))
        return _beside(item.row, answer)

    def _answer(self, item: Prediction) -> dict[str, Any]:
        label, p = next(iter((item.probabilities or {}).items()), (None, None))
        return {"predicted_label": label, "probability": _rounded(p)}


def _beside(row: InputText, answer: dict[str, Any]) -> dict[str, Any]:
    taken = [name for name in answer if name in row.values]
    if taken:
        raise DataError(
            f"{row.where} has a column {taken[0]!r} already, which is what the result is called. Rename "
            "it, or leave it out."
        )
    return row.values | answer


def _rounded(value: float | None) -> float | None:
    # What float32 holds, and no more digits.
    return None if value is None else float(f"{value:.6g}")
