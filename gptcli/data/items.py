"""From sources to the items of a task, training and held-out ones, and what is to be known of them.

An item is what a row gives before it is tokenized: a text with its label, a question with its text, a
conversation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from gptcli.config.schema import DataSettings, Settings
from gptcli.data.examples import Examples, hold_out
from gptcli.data.ledger import Reading
from gptcli.data.progress import ROWS_BETWEEN_NOTICES, Notify, PreparationProgress
from gptcli.data.sources import Source, find_sources
from gptcli.errors import DataError

MAX_LABELS_SHOWN = 12
AN_EXAMPLE = "an example"
"""Of what a summary tells."""


class Item(Protocol):
    """What a row of a data set gives."""

    @property
    def where(self) -> str:
        """Its place, for messages."""

    @property
    def key(self) -> Hashable:
        """Items with equal keys are the same input."""


I = TypeVar("I", bound=Item)  # noqa: E741

Parse = Callable[[Source, DataSettings, Reading], Iterator[I]]
"""Yields the items of a source. What it leaves out, it counts."""


@dataclass(frozen=True)
class Items(Generic[I]):
    """The items of both splits."""

    train: list[I]
    validation: list[I]
    sources: list[str]
    split_by: str
    reading: Reading

    @property
    def repeated(self) -> int:
        """Training items whose input is that of an earlier one."""
        return len(self.train) - len({item.key for item in self.train})

    @property
    def overlap(self) -> int:
        """Held-out items whose input is trained on."""
        keys = {item.key for item in self.train}
        return sum(item.key in keys for item in self.validation)


def read_items(
    settings: Settings,
    parse: Parse[I],
    notify: Notify,
    *,
    group: Callable[[I], Hashable] = lambda item: item.key,
    stratum: Callable[[I], Hashable] = lambda item: None,
) -> Items[I]:
    """Return the items of data.source and data.validation_source, or a part of the first held out.

    group: items of one group land on the same side. stratum: of each, the same share is held out.
    Raises DataError if there is nothing to learn from.
    """
    data, reading = settings.data, Reading()
    sources = find_sources(data.source, data, reading)
    others = (
        find_sources(data.validation_source, data, reading, name="data.validation_source")
        if data.validation_source
        else []
    )
    train = list(_items_of(sources, parse, data, reading, notify))
    names = [str(source) for source in (*sources, *others)]
    if others:
        validation = list(_items_of(others, parse, data, reading, notify))
        return Items(train, validation, names, "validation_source", reading)
    is_held_out = hold_out(
        [group(item) for item in train],
        data.validation_fraction,
        settings.runtime.seed,
        [stratum(item) for item in train],
    )
    validation = [item for item, out in zip(train, is_held_out, strict=True) if out]
    train = [item for item, out in zip(train, is_held_out, strict=True) if not out]
    if data.validation_fraction and not validation:
        raise DataError(
            f"{', '.join(names)}: {data.validation_fraction:g} of {len({item.key for item in train})} "
            "different examples is none. Raise data.validation_fraction, or set it to 0."
        )
    if not train:
        raise DataError(
            f"{', '.join(names)}: {data.validation_fraction:g} of the examples is all of them, and none "
            "is left to learn from. Lower data.validation_fraction."
        )
    return Items(train, validation, names, "example" if validation else "none", reading)


def _items_of(
    sources: list[Source],
    parse: Parse[I],
    data: DataSettings,
    reading: Reading,
    notify: Notify,
) -> Iterator[I]:
    count = 0
    for source in sources:
        for item in parse(source, data, reading):
            count += 1
            if count % ROWS_BETWEEN_NOTICES == 0:
                notify(PreparationProgress("reading", count, None, "rows"))
            yield item
    if not count:
        raise DataError(f"{', '.join(map(str, sources))}: there is no example to learn from.")


@dataclass
class LengthLimit:
    """What becomes of sequences that are longer than the model's context."""

    context_length: int
    rule: str
    """data.too_long: cut, drop or refuse."""
    cut: int = 0
    dropped: int = 0
    tokens_lost: int = 0
    """Of both."""
    lengths: list[int] = field(default_factory=list)
    """Of all that was asked for, in tokens, before any cut."""

    def fit(self, token_count: int, where: str) -> int:
        """Return how many of the tokens are kept, from the front; 0 drops the example."""
        self.lengths.append(token_count)
        if token_count <= self.context_length:
            return token_count
        if self.rule == "refuse":
            raise DataError(
                f"{where} has {token_count} tokens; model.context_length is {self.context_length}, and "
                "data.too_long is refuse."
            )
        if self.rule == "drop":
            self.dropped += 1
            self.tokens_lost += token_count
            return 0
        self.cut += 1
        self.tokens_lost += token_count - self.context_length
        return self.context_length


@dataclass
class ItemReport:
    """What is to be known of the data before anything is trained on it."""

    ledger: dict[str, Any]
    summary: list[tuple[str, str]] = field(default_factory=list)


def report_items(
    items: Items[Any],
    train: Examples,
    validation: Examples,
    limit: LengthLimit,
    *,
    labels: dict[str, list[int]] | None = None,
    counts: dict[str, int] | None = None,
    sample: str,
) -> ItemReport:
    """Return the report.

    labels: {label: [in training, held out]}. counts: what else was counted while the items were made
    into examples. sample: one example, for people.
    """
    lengths = length_percentiles(np.array(limit.lengths))
    ledger: dict[str, Any] = {
        "sources": items.sources,
        "split_by": items.split_by,
        "reading": asdict(items.reading),
        "train": {"examples": len(train), "tokens": train.token_count},
        "validation": {"examples": len(validation), "tokens": validation.token_count},
        **({"labels": labels} if labels is not None else {}),
        "length_percentiles": lengths,
        "too_long": {
            "cut": limit.cut,
            "dropped": limit.dropped,
            "tokens_lost": limit.tokens_lost,
        },
        "repeated_in_training": items.repeated,
        "held_out_but_trained_on": items.overlap,
        **(counts or {}),
        "sample": sample,
    }
    cut = f"{limit.cut:,} cut" if limit.rule == "cut" else f"{limit.dropped:,} dropped"
    summary = [
        ("training data", f"{len(train):,} examples, {train.token_count:,} tokens"),
        ("held-out data", f"{len(validation):,} examples, {validation.token_count:,} tokens"),
    ]
    if labels is not None:
        summary.append(("labels", _shown_labels(labels)))
    summary.append(
        (
            "lengths",
            ", ".join(f"{name} {value:,}" for name, value in lengths.items())
            + f" tokens; context {limit.context_length:,}: {cut}",
        )
    )
    if items.repeated:
        summary.append(("repeated", f"{items.repeated:,} training examples have the input of another"))
    if items.overlap:
        summary.append(
            (
                "overlap",
                f"{items.overlap:,} held-out examples are trained on: scores are too good by them",
            )
        )
    for name, count in (counts or {}).items():
        if count:
            summary.append((name.replace("_", " "), f"{count:,}"))
    summary.append((AN_EXAMPLE, sample))
    return ItemReport(ledger, summary)


def length_percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Return the shortest length, and those that so many in a hundred do not exceed."""
    if not len(lengths):
        return {}
    values = np.percentile(lengths, [0, 50, 90, 99, 100], method="higher")
    names = ("shortest", "median", "90%", "99%", "longest")
    return {name: int(value) for name, value in zip(names, values, strict=True)}


def _shown_labels(labels: dict[str, list[int]]) -> str:
    counts = {label: sum(parts) for label, parts in labels.items()}
    total = sum(counts.values())
    if len(counts) <= MAX_LABELS_SHOWN:
        return ", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in counts.items())
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    return (
        f"{len(counts)}, from {least} ({counts[least]:,}) to {most} ({counts[most]:,}, "
        f"{counts[most] / total:.1%})"
    )


def count_labels(
    train: Iterable[Sequence[str]], validation: Iterable[Sequence[str]], labels: Sequence[str]
) -> dict[str, list[int]]:
    """Return {label: [in training, held out]}; each example comes as the labels that it has."""
    trained = Counter(label for names in train for label in names)
    held_out = Counter(label for names in validation for label in names)
    return {label: [trained[label], held_out[label]] for label in labels}


def shortened(text: str, length: int = 300) -> str:
    """Return the text on one line, and no longer than that."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 4]} ..."
