"""Labels: how many examples each has, and what too few or contradicting ones mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptcli.data.labelled_texts import LabelledText
from gptcli.inspection.findings import Finding, share

FEW_EXAMPLES = 5
"""With fewer, a label is hardly learnt, and hardly ever right."""
LARGE_SHARE = 0.8
LARGE_RATIO = 20
LABELS_NAMED = 5


def label_findings(
    counts: Mapping[str, Sequence[int]], items: Sequence[LabelledText], *, has_validation: bool
) -> Iterator[Finding]:
    """Yield what is to be said of the labels of classification.

    counts: {label: [in training, held out]}. items: of both splits, for places.
    """
    trained = {label: count[0] for label, count in counts.items()}
    rare = {label: count for label, count in trained.items() if 0 < count < FEW_EXAMPLES}
    unknown = [label for label, count in trained.items() if not count]
    unscored = [label for label, count in counts.items() if count[0] and not count[1]]
    total = sum(trained.values())
    largest, smallest = max(trained, key=trained.__getitem__), min(trained, key=trained.__getitem__)
    if unknown:
        yield Finding(
            "problem",
            "labels",
            f"{_of_labels(len(unknown))} no training example: {_listed(unknown)}",
            advice="Add examples, or take them out of data.labels.",
        )
    if rare:
        first = next(iter(rare))
        yield Finding(
            "warning",
            "labels",
            f"{_of_labels(len(rare))} fewer than {FEW_EXAMPLES} training examples: "
            f"{_listed([f'{label} ({count})' for label, count in rare.items()])}",
            _place_of(first, items),
            "Add examples, or join them with another label.",
        )
    if unscored and has_validation:
        yield Finding(
            "warning",
            "labels",
            f"{_of_labels(len(unscored))} no held-out example: {_listed(unscored)}",
            _place_of(unscored[0], items),
            "No score says how well they are learnt: hold out more (data.validation_fraction).",
        )
    if trained[largest] >= LARGE_SHARE * total:
        yield Finding(
            "warning",
            "labels",
            f"{share(trained[largest], total)} have the label {largest}: always to say so would be "
            "right that often",
            advice="Go by macro-F1, not accuracy; training.class_weights: balanced helps rare labels.",
        )
    elif trained[largest] > LARGE_RATIO * max(1, trained[smallest]):
        yield Finding(
            "warning",
            "labels",
            f"{largest} has {trained[largest]:,} training examples and {smallest} {trained[smallest]:,}",
            advice="training.class_weights: balanced helps rare labels.",
        )
    elif not unknown and not rare:
        yield Finding(
            "ok",
            "labels",
            f"{len(counts):,} labels, with {trained[smallest]:,} ({smallest}) to {trained[largest]:,} "
            f"({largest}) training examples",
        )


def contradiction_findings(items: Sequence[LabelledText]) -> Iterator[Finding]:
    """Yield whether a text has different labels, or numbers, in different places."""
    first: dict[Any, LabelledText] = {}
    contradicted: set[Any] = set()
    example: str | None = None
    for item in items:
        earlier = first.setdefault(item.key, item)
        if (earlier.labels, earlier.number) != (item.labels, item.number):
            contradicted.add(item.key)
            example = example or f"{item.where} and {earlier.where}"
    if contradicted:
        yield Finding(
            "problem" if len(contradicted) > 0.01 * len(first) else "warning",
            "contradictions",
            f"{share(len(contradicted), len(first))} of the texts ({len(contradicted):,}) stand there "
            "with different labels",
            example,
            "Only one can be right: mend or leave out the others.",
        )
    else:
        yield Finding("ok", "contradictions", "no text stands there with different labels")


def _of_labels(count: int) -> str:
    return "1 label has" if count == 1 else f"{count:,} labels have"


def _place_of(label: str, items: Sequence[LabelledText]) -> str | None:
    return next((item.where for item in items if label in item.labels), None)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LABELS_NAMED} more" if len(names) > LABELS_NAMED else ""
    return ", ".join(names[:LABELS_NAMED]) + more
