"""Classification: texts in, labels with their probabilities out, in the order of the texts.

Texts of like length go through the model together, as `data.token_budget` puts them; memory does not
grow with their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.config.schema import RuntimeSettings
from gptcli.data.input_rows import InputText
from gptcli.data.labelled_texts import Objective
from gptcli.data.token_budget import TokenBatch, TokenBudget, score_in_order
from gptcli.errors import ConfigError, DataError, ModelError
from gptcli.evaluation.label_likelihood import DEFAULT_TEMPLATE, LabelLikelihood
from gptcli.models.loading import LoadedModel, find_model, label_names, load_model, objective_of
from gptcli.models.scoring_forward import ScoringForward
from gptcli.tasks.assembly import ids_and_lengths
from gptcli.tasks.classification import scored, text_ids
from gptcli.training.device import choose_compute


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


@dataclass(frozen=True, slots=True)
class _TokenizedText:
    input_ids: list[int]
    is_cut: bool


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

    def __init__(self, loaded: LoadedModel, *, is_int8: bool) -> None:
        self._loaded = loaded
        self._forward = ScoringForward(loaded.model, is_int8=is_int8)
        loaded.model.score.float()  # As `scored` wants it.

    def encode(self, texts: list[tuple[str, str | None]]) -> list[tuple[list[int], bool]]:
        """Return the tokens of each text, or pair, and whether its end is cut off."""
        # As in training, the front is kept.
        limit = self._loaded.model.config.n_positions
        all_ids = text_ids(self._loaded.tokenizer, texts)
        return [(ids[:limit], len(ids) > limit) for ids in all_ids]

    def logits(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Return (texts, labels) in float32.

        input_ids: (texts, tokens), padded on the right with anything. lengths: (texts,).
        """
        # A text is judged by its last token, which alone has seen all of it.
        begins = torch.arange(0, input_ids.numel(), input_ids.shape[1], device=input_ids.device)
        return scored(self._loaded.model, self._forward.hidden_states(input_ids, begins + lengths - 1))


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
            self._scorer = LabelLikelihood(
                loaded.model, loaded.tokenizer, labels, template, is_int8=self._compute.is_int8
            )
            self.labels, self.objective = labels, "single-label"
        else:
            loaded = load_model(*where, kind="classification")
            self._scorer = ClassificationHead(loaded, is_int8=self._compute.is_int8)
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
        self.context_length = int(loaded.model.config.n_positions)
        self._budget = TokenBudget.of_device(
            self._compute.device.type, self.context_length, self._scorer.tokens_beside
        )
        self.counts = Counts()

    def predict(self, rows: Iterable[InputText], *, is_live: bool = False) -> Iterator[list[Prediction]]:
        """Yield the predictions of all rows, in order, some at a time. Counts them in `counts`.

        is_live: the next row may come at any time, as one that is typed; then what is there is answered.
        An error while reading comes after the predictions of the rows before.
        """
        for some in score_in_order(
            rows,
            self._tokenize,
            self._outputs,
            self._budget,
            characters=lambda row: len(row.text) + len(row.text_pair or ""),
            is_live=is_live,
        ):
            predictions = [self._prediction(row, *outputs) for row, outputs in some]
            self.counts.rows += len(some)
            self.counts.blank += sum(row.is_blank for row, _ in some)
            self.counts.labels.update(label for item in predictions for label in item.labels)
            yield predictions

    def _prediction(self, row: InputText, output: np.ndarray | None = None) -> Prediction:
        """output: (labels,) probabilities, or (1,) the number; None of a blank text."""
        if output is None:
            return Prediction(row, [], None)
        if self.objective == "regression":
            return Prediction(row, [], None, float(output[0]))
        order = np.argsort(-output, kind="stable")
        probabilities = {self.labels[n]: float(output[n]) for n in order}
        if self.objective == "multi-label":
            labels = [self.labels[n] for n in np.flatnonzero(output >= self._threshold)]
        else:
            labels = [self.labels[order[0]]]
        return Prediction(row, labels, probabilities)

    def _tokenize(self, rows: list[InputText]) -> list[list[_TokenizedText]]:
        """Return the tokens of each text, or pair; nothing of a blank one."""
        worded = [row for row in rows if not row.is_blank]
        if isinstance(self._scorer, LabelLikelihood):
            encoded = self._scorer.encode([row.text for row in worded])
        else:
            encoded = self._scorer.encode([(row.text, row.text_pair) for row in worded])
        self._loaded.check_token(max((max(ids) for ids, _ in encoded), default=0), "a text")
        texts = (_TokenizedText(ids, is_cut) for ids, is_cut in encoded)
        return [[] if row.is_blank else [next(texts)] for row in rows]

    @torch.inference_mode()
    def _outputs(self, batch: TokenBatch[_TokenizedText]) -> list[np.ndarray]:
        """Return (labels,) of each text: probabilities, or the number of regression."""
        self.counts.cut += sum(text.is_cut for text in batch.sequences)
        logits = self._scorer.logits(*ids_and_lengths(batch, self._compute))
        if not logits.isfinite().all():
            raise ModelError(
                "The model's scores are not finite: its weights are damaged, or too large for this "
                "--precision. Try --precision fp32."
            )
        return list(self._activated(logits).cpu().numpy())

    def _activated(self, logits: Tensor) -> Tensor:
        match self.objective:
            case "single-label":
                return logits.softmax(1)
            case "multi-label":
                return logits.sigmoid()
            case "regression":
                return logits


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


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
