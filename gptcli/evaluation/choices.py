"""Benchmarks of choices, measured: which continuation a model finds the likeliest, item by item."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gptcli.evaluation.benchmarks.benchmark import Benchmark, Item
from gptcli.evaluation.bootstrap import Measured, Metric
from gptcli.evaluation.continuations import ContinuationScorer, Likelihood

# Items that are scored together: the more, the more of their beginnings are shared.
ITEMS_AT_ONCE = 512

DEFINITIONS = {
    "acc": "share of items whose right choice is the likeliest",
    "acc_norm": "the same, of log-likelihoods over the choice's characters",
    "stereotyped": "share of pairs whose stereotyped sentence is the likelier; 0.5 is no preference",
    "last_word": "share of passages whose last word is what greedy decoding gives",
    "perplexity": "exp of the mean over passages of -log p(last word)",
}


@dataclass(frozen=True)
class ItemResult:
    """What the model says of one item."""

    item: Item
    likelihoods: list[Likelihood]

    @property
    def log_probabilities(self) -> np.ndarray:
        """(choices,) in nats."""
        return np.array([likelihood.log_probability for likelihood in self.likelihoods])

    @property
    def predicted(self) -> int:
        """The likeliest choice; the first of equals."""
        return int(self.log_probabilities.argmax())

    @property
    def predicted_by_length(self) -> int:
        """The likeliest choice a character; never one that has none."""
        characters = np.array([len(text) for text in self.item.texts])
        with np.errstate(divide="ignore"):
            return int((self.log_probabilities / characters).argmax())

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, for a log of samples."""
        item = self.item
        return {
            "where": item.where,
            "contexts": list(dict.fromkeys(one.context for one in item.continuations)),
            "choices": list(item.texts),
            "gold": item.gold,
            "predicted": self.predicted,
            "log_probabilities": [round(float(log), 4) for log in self.log_probabilities],
            "tokens": [likelihood.tokens for likelihood in self.likelihoods],
            "is_greedy": [likelihood.is_greedy for likelihood in self.likelihoods],
        }


@dataclass
class ChoiceCounts:
    """What was met with on the way."""

    items: int = 0
    tokens: int = 0
    """Scored."""
    cut: int = 0
    """Items whose context was longer than the model's, and lost its beginning."""
    groups: dict[str, int] = field(default_factory=dict)


def score_items(
    scorer: ContinuationScorer,
    items: Iterable[Item],
    counts: ChoiceCounts,
    progress: Callable[[int], None] = lambda items: None,
) -> Iterator[ItemResult]:
    """Yield the result of each item, in order; some at a time, so that memory does not grow."""
    window: list[Item] = []

    def results() -> Iterator[ItemResult]:
        found = iter(scorer.score([one for item in window for one in item.continuations]))
        for item in window:
            likelihoods = [next(found) for _ in item.continuations]
            counts.items += 1
            counts.tokens += sum(likelihood.tokens for likelihood in likelihoods)
            counts.cut += any(likelihood.is_cut for likelihood in likelihoods)
            counts.groups[item.group] = counts.groups.get(item.group, 0) + 1
            yield ItemResult(item, likelihoods)

    for item in items:
        window.append(item)
        if len(window) == ITEMS_AT_ONCE:
            yield from results()
            window.clear()
            progress(counts.items)
    yield from results()
    progress(counts.items)


def measure_choices(benchmark: Benchmark, results: Iterable[ItemResult]) -> Measured:
    """Return what was measured of one item or more: a score for all, and one for each group."""
    groups: dict[str, int] = {}
    # Arrays of machine numbers: of a million items, lists would take ten times the memory.
    rows, group_of = array("d"), array("q")
    columns = 0
    for result in results:
        item = result.item
        group_of.append(groups.setdefault(item.group, len(groups)))
        if benchmark.measure == "last word":
            (likelihood,) = result.likelihoods
            row = [1.0, likelihood.is_greedy, -likelihood.log_probability]
        elif benchmark.measure == "stereotype":  # As published, equals are no preference for it.
            logs = result.log_probabilities
            row = [1.0, bool(logs[item.gold] > np.delete(logs, item.gold).max())]
        else:
            row = [1.0, result.predicted == item.gold]
            if benchmark.measure == "normalized accuracy":
                row.append(result.predicted_by_length == item.gold)
        rows.extend(row)
        columns = len(row)
    measured = np.frombuffer(rows, np.float64).reshape(-1, columns)
    unit = "pairs" if benchmark.measure == "stereotype" else "items"
    metrics = _metrics(benchmark, 0, "")
    if len(groups) > 1:
        # Columns of a group's own: those of all, where the item belongs to it.
        numbers = np.frombuffer(group_of, np.int64)[:, None]
        parts = [measured]
        for group, number in sorted(groups.items()):
            metrics += _metrics(benchmark, len(parts) * measured.shape[1], f"/{group}")
            parts.append(measured * (numbers == number))
        measured = np.concatenate(parts, 1)
    return Measured(measured, metrics, unit)


def metric_names(benchmark: Benchmark) -> list[str]:
    """Return the names of a benchmark's scores of all its items."""
    return [metric.name for metric in _metrics(benchmark, 0, "")]


def _metrics(benchmark: Benchmark, first: int, suffix: str) -> list[Metric]:
    """Return the metrics of the columns from `first` on."""

    def mean(column: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda sums: sums[:, first + column] / sums[:, first]

    def metric(name: str, column: int) -> Metric:
        definition = DEFINITIONS[name]
        shown = "acc" if name == "last_word" else name
        return Metric(shown + suffix, definition, mean(column), items_of=lambda sums: sums[:, first])

    match benchmark.measure:
        case "last word":
            nats = mean(2)
            perplexity = Metric(
                f"perplexity{suffix}", DEFINITIONS["perplexity"], lambda sums: np.exp(nats(sums)), False
            )
            return [metric("last_word", 1), perplexity]
        case "stereotype":
            return [replace(metric("stereotyped", 1), is_better_higher=None)]
        case "accuracy":
            return [metric("acc", 1)]
        case "normalized accuracy":
            return [metric("acc", 1), metric("acc_norm", 2)]
