"""Classification: one label of several, any number of labels, or a number, for a text or a pair.

The hidden state of a text's last token, which alone has seen all of it, goes through a linear head.
That is `GPT2ForSequenceClassification`, but for finding that token: here it is told by the text's
length, so a text may contain the token that others are padded with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.schema import Settings, TrainingSettings
from gptcli.data.batches import Batch, mix
from gptcli.data.examples import Example, ExampleBatches, Examples, evaluation_batches
from gptcli.data.items import (
    Items,
    LengthLimit,
    count_labels,
    read_items,
    report_items,
    shortened,
)
from gptcli.data.labelled_texts import LabelledText, LabelledTexts, Objective, labels_in_order
from gptcli.data.progress import Notify, noticed
from gptcli.data.tokenizing import encode_batch
from gptcli.errors import ConfigError
from gptcli.evaluation.classification import score_label_sets, score_labels, score_numbers
from gptcli.models.loading import PROBLEM_TYPES
from gptcli.models.starting import StartingModel
from gptcli.tasks.assembly import (
    BatchedTask,
    Batches,
    TaskData,
    assemble_job,
    choose_tokenizer,
    ids_and_lengths,
)
from gptcli.training.device import Compute
from gptcli.training.job import Evaluation, Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS_AT_ONCE = 1000
"""Tokenized together."""


def class_logits(model: Any, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return (sequences, labels) logits in float32.

    input_ids: (sequences, tokens), padded on the right with anything. lengths: (sequences,).
    """
    hidden = _hidden_states(model, input_ids)
    return scored(model, hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1])


def _hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    # No attention mask: a text's last token never looks at the padding behind it.
    hidden: Tensor = model.transformer(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden


def scored(model: Any, hidden: Tensor) -> Tensor:
    """Return (..., labels) logits in float32 of (..., width) hidden states."""
    # The head in float32, whatever the rest is in: bfloat16 would round logits to 8 bits, and make ties.
    with torch.autocast(hidden.device.type, enabled=False):
        logits: Tensor = model.score(hidden.float())
    return logits


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str | None]]) -> list[list[int]]:
    """Return the tokens of each text, or pair with end-of-text between; one token at least."""
    firsts = encode_batch(tokenizer, [text for text, _ in texts])
    seconds = encode_batch(tokenizer, [pair or "" for _, pair in texts])
    between = tokenizer.eos_token_id
    return [
        (first if pair is None else [*first, between, *second]) or [between]
        for (_, pair), first, second in zip(texts, firsts, seconds, strict=True)
    ]


class ThinnedBatches:
    """The batches of `batches`, each text without a share of its tokens, others in each step.

    Random deletion, of Wei and Zou 2019 (https://arxiv.org/abs/1901.11196), anew in each epoch.
    """

    def __init__(self, batches: Batches, share: float, *, end_of_text_id: int, seed: int) -> None:
        self._batches = batches
        self._share = share
        self._end_of_text_id = end_of_text_id
        self._seed = seed

    def batch(self, step: int) -> Batch:
        batch = self._batches.batch(step)
        random = np.random.default_rng(mix(self._seed, step, 4))
        # What stands between a text and its pair stays.
        left_out = (random.random(batch.input_ids.shape) < self._share) & (
            batch.input_ids != self._end_of_text_id
        )
        return without_tokens(batch, left_out)

    def describe(self, step: int) -> str:
        return self._batches.describe(step)


def without_tokens(batch: Batch, left_out: np.ndarray) -> Batch:
    """Return the batch without the tokens that are marked; a text that would lose all keeps its first.

    left_out: (sequences, tokens) bool.
    """
    kept = ~left_out & (np.arange(batch.input_ids.shape[1]) < batch.lengths[:, None])
    kept[~kept.any(1), 0] = True
    lengths = kept.sum(1)
    # Stable: the tokens that are kept move to the left in their order.
    order = np.argsort(~kept, axis=1, kind="stable")[:, : lengths.max()]
    input_ids = np.take_along_axis(batch.input_ids, order, axis=1)
    return Batch(input_ids, lengths, batch.targets, batch.is_token_by_token)


def prefix_weights(lengths: Tensor, tokens: int, share: float) -> Tensor:
    """Return (sequences, `tokens`): how much the loss counts that a text would have if it ended there.

    lengths: (sequences,). share: of a text's weight of 1, what all its beginnings get, itself included,
    each the same: "target replication", of Lipton et al. 2016 (https://arxiv.org/abs/1511.03677).
    """
    ends = lengths[:, None] - 1
    places = torch.arange(tokens, device=lengths.device)
    return share / lengths[:, None] * (places <= ends) + (1 - share) * (places == ends)


@dataclass(frozen=True)
class Targets:
    """What is learnt: the labels, and how much each counts."""

    objective: Objective
    labels: list[str]
    weights: np.ndarray | None = None
    """Single-label: (labels,), of each in the loss; all 1 if None."""


class Classification(BatchedTask):
    """Learns labels from the examples of `batches`."""

    def __init__(
        self,
        batches: Batches,
        validation: Examples,
        targets: Targets,
        compute: Compute,
        label_smoothing: float = 0.0,
        prefix_loss: float = 0.0,
    ) -> None:
        super().__init__(batches, compute, label_smoothing)
        self._prefix_loss = prefix_loss
        self._validation = validation
        self._targets = targets
        self.best_by = "loss" if targets.objective == "regression" else "macro_f1"

    def target_weight(self, batch: Batch) -> float:
        weights = self._targets.weights
        return batch.targets.size if weights is None else float(weights[batch.targets].sum())

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        input_ids, lengths = ids_and_lengths(batch, self._compute)
        targets = torch.from_numpy(batch.targets).to(input_ids.device, non_blocking=True)
        weights, smoothing = self._targets.weights, self._label_smoothing
        if not self._prefix_loss:
            return self._losses(
                class_logits(model, input_ids, lengths), targets, weights, smoothing
            ).sum()
        tokens = input_ids.shape[1]
        logits = scored(model, _hidden_states(model, input_ids)).flatten(0, 1)
        losses = self._losses(logits, targets.repeat_interleave(tokens, 0), weights, smoothing)
        return (losses * prefix_weights(lengths, tokens, self._prefix_loss).flatten()).sum()

    def _losses(
        self, logits: Tensor, targets: Tensor, weights: np.ndarray | None, smoothing: float
    ) -> Tensor:
        """Return (rows,) losses of logits (rows, labels); those of several labels are summed."""
        weight = None if weights is None else torch.from_numpy(weights).float().to(logits.device)
        match self._targets.objective:
            case "single-label":
                return F.cross_entropy(
                    logits, targets, weight, reduction="none", label_smoothing=smoothing
                )
            case "multi-label":
                wanted = targets.float() * (1 - smoothing) + smoothing / 2
                return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)
            case "regression":
                return F.mse_loss(logits[:, 0], targets.float(), reduction="none")

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, micro_batch_size: int, between_batches: Callable[[], None]
    ) -> Evaluation | None:
        """Return the scores on the held-out examples; the loss is the plain one, all weights 1."""
        examples = self._validation
        if not len(examples):
            return None
        model.eval()
        outputs = np.zeros((len(examples), len(self._targets.labels)), np.float32)
        total = 0.0
        for numbers, batch in evaluation_batches(examples, micro_batch_size * examples.longest):
            between_batches()
            with self._compute.autocast():
                logits = class_logits(model, *ids_and_lengths(batch, self._compute))
            targets = torch.from_numpy(batch.targets).to(logits.device)
            total += self._losses(logits, targets, None, 0.0).sum().item()
            outputs[numbers] = logits.cpu().numpy()
        loss = total / examples.targets.size
        labels = self._targets.labels
        if self._targets.objective == "regression":
            return Evaluation({"loss": loss, **score_numbers(outputs[:, 0], examples.targets).as_dict()})
        if self._targets.objective == "multi-label":
            scores = score_label_sets(outputs > 0, examples.targets, labels).as_dict()
        else:
            scores = score_labels(outputs.argmax(1), examples.targets, labels).as_dict()
        details: dict[str, Any] = {
            name: scores.pop(name) for name in ("per_label", "confusion") if name in scores
        }
        return Evaluation({"loss": loss, **scores}, details)


def read_labelled(settings: Settings, notify: Notify) -> tuple[Items[LabelledText], Objective]:
    """Return the labelled texts of both splits, and what is to be learnt of them."""
    reader = LabelledTexts(settings.training.objective)
    items = read_items(settings, reader.parse, notify, stratum=lambda item: item.labels)
    assert reader.objective is not None
    return items, reader.objective


def build_job(settings: Settings, compute: Compute, notify: Notify) -> Job:
    """Return the job of learning the labels of the texts in data.source."""
    start = StartingModel(settings)
    items, objective = read_labelled(settings, notify)
    targets = _targets(objective, items, settings)
    tokenizer = choose_tokenizer(settings, start, (item.text for item in items.train), notify)
    limit = LengthLimit(start.context_length, settings.data.too_long)
    train, validation = (
        _examples(noticed(part, f"making {split} examples", notify), targets, tokenizer, limit)
        for part, split in ((items.train, "training"), (items.validation, "held-out"))
    )
    counts = None
    if targets.objective != "regression":
        counts = count_labels(
            (item.labels for item in items.train),
            (item.labels for item in items.validation),
            targets.labels,
        )
    report = report_items(
        items,
        train,
        validation,
        limit,
        labels=counts,
        counts={"repeated_with_other_labels": _contradictions(items.train)},
        sample=_sample(items.train[0]),
    )
    trainable = start.load("classification", tokenizer, targets.labels)
    trainable.model.config.problem_type = PROBLEM_TYPES[targets.objective]
    training, seed = settings.training, settings.runtime.seed
    batches: Batches = ExampleBatches(train, batch_size=training.batch_size, seed=seed)
    if training.token_dropout:
        batches = ThinnedBatches(
            batches, training.token_dropout, end_of_text_id=tokenizer.eos_token_id, seed=seed
        )
    task = Classification(
        batches, validation, targets, compute, training.label_smoothing, training.prefix_loss
    )
    if targets.objective != "regression":
        # What is resolved once is the same when the run is repeated from its config.yaml.
        data = settings.data.model_copy(update={"labels": targets.labels})
        settings = settings.model_copy(update={"data": data})
    return assemble_job(
        settings, compute, task, trainable, tokenizer, TaskData.of(train, validation, limit, report)
    )


def _targets(objective: Objective, items: Items[LabelledText], settings: Settings) -> Targets:
    training, data = settings.training, settings.data
    if objective == "regression":
        for name, value, default in (
            ("data.labels", data.labels, None),
            ("training.class_weights", training.class_weights, "none"),
            ("training.label_smoothing", training.label_smoothing, 0),
        ):
            if value != default:
                raise ConfigError(f"{name} is set, but regression has no labels.")
        return Targets(objective, [str(data.columns.label)])
    given = data.labels
    if given is None and isinstance(data.columns.label, list):
        given = data.columns.label
    labels = labels_in_order(items.train, items.validation, given)
    return Targets(objective, labels, _weights(items.train, labels, training, objective))


def _weights(
    train: list[LabelledText], labels: list[str], training: TrainingSettings, objective: Objective
) -> np.ndarray | None:
    """Return (labels,) weights whose mean over the training examples is 1, or None."""
    wanted = training.class_weights
    if wanted == "none":
        return None
    if objective == "multi-label":
        raise ConfigError("training.class_weights is for examples of one label each.")
    counts = np.array([sum(label in item.labels for item in train) for label in labels], float)
    if isinstance(wanted, dict):
        unknown = sorted(wanted.keys() - set(labels))
        if unknown:
            raise ConfigError(
                f"training.class_weights names {unknown[0]!r}; the labels are {', '.join(labels[:20])}."
            )
        return np.array([wanted.get(label, 1.0) for label in labels])
    # n / (labels * count), as in scikit-learn; a label without examples is never weighed.
    weights: np.ndarray = len(train) / (len(labels) * np.maximum(counts, 1))
    return weights


def _examples(
    items: Iterable[LabelledText],
    targets: Targets,
    tokenizer: PreTrainedTokenizerFast,
    limit: LengthLimit,
) -> Examples:
    numbers = {label: number for number, label in enumerate(targets.labels)}
    examples = []
    for item, ids in _with_ids(items, tokenizer):
        kept = limit.fit(len(ids), item.where)
        if not kept:
            continue
        target: Any
        match targets.objective:
            case "single-label":
                target = numbers[item.labels[0]]
            case "multi-label":
                target = np.zeros(len(numbers), dtype=bool)
                target[[numbers[label] for label in item.labels]] = True
            case "regression":
                target = item.number
        examples.append(Example(ids[:kept], target, item.where))
    return Examples(examples)


def _with_ids(
    items: Iterable[LabelledText], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[LabelledText, list[int]]]:
    left = iter(items)
    while part := list(islice(left, TEXTS_AT_ONCE)):
        all_ids = text_ids(tokenizer, [(item.text, item.text_pair) for item in part])
        yield from zip(part, all_ids, strict=True)


def _contradictions(train: list[LabelledText]) -> int:
    """Return how many training texts stand there with different labels."""
    seen: dict[Any, set[Any]] = {}
    for item in train:
        seen.setdefault(item.key, set()).add((item.labels, item.number))
    return sum(len(labels) > 1 for labels in seen.values())


def _sample(item: LabelledText) -> str:
    pair = "" if item.text_pair is None else f" | {shortened(item.text_pair)}"
    learnt = ", ".join(item.labels) if item.labels else f"{item.number:g}"
    return f"{shortened(item.text)}{pair} -> [[{learnt}]]"
