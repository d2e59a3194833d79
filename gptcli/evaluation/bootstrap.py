"""Scores with their uncertainty: intervals, and tests of whether two models differ.

Every score here is a function of sums over items: accuracy of (right, items), F1 of (true positives,
predicted, true), bits per byte of (bits, bytes). So one resampling serves all scores:

1. `Measured` holds what was measured of each item, a row each, and the metrics that its sums give;
2. `scores_of` draws as many items with replacement as there are, again and again, and takes the middle
   95% of the scores (the percentile bootstrap of Efron 1979). Where no item is right, or all are, every
   draw is the same; such a share gets Wilson's interval (1927), of which that is the end;
3. `differences` draws the same items for two models, and asks how often a difference as large comes up
   when it is left to chance which of the two each item's result belongs to (approximate randomization,
   Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses").

All of it is a function of the seed. Beyond MAX_GROUPS items, they are first put into that many groups at
random and the groups are drawn: the sums vary in the same way, at a cost that no longer grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
MIN_COMPARED = 6
"""Items: of fewer, chance gives any difference in more than one case of twenty (2 of 2**5)."""
CONFIDENCE = 0.95
Z_SQUARED = 1.959964**2
"""Of the normal distribution, for 95%."""
MAX_GROUPS = 10_000
# Numbers of a block of draws in memory.
_BLOCK = 2**22


@dataclass(frozen=True)
class Metric:
    """A score that follows from sums over items."""

    name: str
    definition: str
    """One line, for people."""
    of_sums: Callable[[np.ndarray], np.ndarray]
    """Takes (draws, columns) sums and returns (draws,) scores; NaN where the score is undefined."""
    is_better_higher: bool | None = True
    """None if neither is better."""
    items_of: Callable[[np.ndarray], np.ndarray] | None = None
    """Of a share of items: takes the same sums, and returns how many items there are."""
    whole: float = 1.0
    """What all items make: 100 for percent."""


@dataclass(frozen=True)
class Measured:
    """What was measured of each item of a test, in the order of the items."""

    items: np.ndarray
    """(items, columns), float64; at least one item. More than MAX_GROUPS items may be `grouped`."""
    metrics: list[Metric]
    unit: str
    """What an item is, in the plural: "questions", "texts"."""


@dataclass(frozen=True)
class Score:
    """A score and where it would lie on other items of the same kind."""

    name: str
    value: float
    low: float
    high: float
    """The ends of the 95% interval; NaN where it cannot be told: of a single item, or if all draws are
    the same.
    """
    definition: str
    is_better_higher: bool | None


@dataclass(frozen=True)
class Difference:
    """How two models' scores on the same items differ: the second less the first."""

    name: str
    first: float
    second: float
    low: float
    high: float
    """The ends of the 95% interval of the difference."""
    p_value: float
    """How often chance alone gives a difference as large, either way."""
    is_better_higher: bool | None

    @property
    def is_real(self) -> bool:
        """Whether chance gives such a difference in less than one case of twenty."""
        return self.p_value < 1 - CONFIDENCE

    @property
    def better(self) -> int | None:
        """Return 0 if the first model is better, 1 if the second is; None if neither is, or chance
        explains the difference.
        """
        if not self.is_real or self.is_better_higher is None:
            return None
        return int((self.second > self.first) == self.is_better_higher)


def scores_of(measured: Measured, *, seed: int, resamples: int = RESAMPLES) -> list[Score]:
    """Return the scores with their intervals. Undefined scores are left out."""
    total = measured.items.sum(0, keepdims=True)
    groups = _grouped(measured.items)
    sums = np.concatenate([draws @ groups for draws in _draws(len(groups), seed, resamples)])
    scores = []
    for metric in measured.metrics:
        with np.errstate(all="ignore"):
            value = float(metric.of_sums(total)[0])
            drawn = metric.of_sums(sums)
        if not np.isfinite(value):
            continue
        low, high = _middle(drawn)
        if metric.items_of is not None and value in (0, metric.whole):
            # The other end of Wilson's interval; see the module.
            count = float(metric.items_of(total)[0])
            low = value * count / (count + Z_SQUARED)
            high = metric.whole - (metric.whole - value) * count / (count + Z_SQUARED)
        elif low == high or len(measured.items) == 1:
            low = high = float("nan")
        scores.append(Score(metric.name, value, low, high, metric.definition, metric.is_better_higher))
    return scores


def differences(
    first: Measured, second: Measured, *, seed: int, resamples: int = RESAMPLES
) -> list[Difference]:
    """Return how the scores that both have differ. Both measure the same items, in the same order."""
    assert len(first.items) == len(second.items)
    both = (first.items, second.items)
    totals = [items.sum(0, keepdims=True) for items in both]
    groups = [_grouped(items) for items in both]
    drawn: list[list[np.ndarray]] = [[], []]
    for draws in _draws(len(groups[0]), seed, resamples):
        for sums, items in zip(drawn, groups, strict=True):
            sums.append(draws @ items)
    resampled = [np.concatenate(parts) for parts in drawn]
    seconds = {metric.name: metric for metric in second.metrics}
    shared = [metric for metric in first.metrics if metric.name in seconds]
    swapped = None
    if first.items.shape == second.items.shape:
        change = groups[1] - groups[0]
        moved = np.concatenate([swaps @ change for swaps in _swaps(len(change), seed, 10 * resamples)])
        swapped = (totals[0] + moved, totals[1] - moved)
    found = []
    for metric in shared:
        other = seconds[metric.name]
        with np.errstate(all="ignore"):
            one = float(metric.of_sums(totals[0])[0])
            two = float(other.of_sums(totals[1])[0])
            spread = other.of_sums(resampled[1]) - metric.of_sums(resampled[0])
            if not np.isfinite([one, two]).all():
                continue
            low, high = _middle(spread)
            gap = two - one
            if swapped is not None:
                by_chance = other.of_sums(swapped[1]) - metric.of_sums(swapped[0])
            else:
                by_chance = spread - gap
        p_value = _share_as_large(by_chance, gap, rounding=1e-9 * max(abs(one), abs(two)))
        found.append(Difference(metric.name, one, two, low, high, p_value, metric.is_better_higher))
    return found


def _share_as_large(by_chance: np.ndarray, gap: float, rounding: float) -> float:
    """Return the share of differences that are at least `gap` in size; the one that was seen counts.

    rounding: by how much two that are equal may differ, in the unit of the scores.
    """
    known = by_chance[np.isfinite(by_chance)]
    as_large = int((np.abs(known) >= abs(gap) - rounding).sum())
    return (as_large + 1) / (len(known) + 1)


def _middle(drawn: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def grouped(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return (MAX_GROUPS, columns) sums of items, each of which is in a group drawn for it.

    blocks: (some, columns) items, as `in_blocks` parts them: what was measured of any number of items
    need not be in memory at once.
    """
    sums: np.ndarray | None = None
    for number, block in enumerate(blocks):
        if sums is None:
            sums = np.zeros((MAX_GROUPS, block.shape[1]))
        # Not by the seed of the draws: the same items are in the same groups for every model.
        group_of = np.random.default_rng(number).integers(0, MAX_GROUPS, len(block))
        np.add.at(sums, group_of, block)
    assert sums is not None
    return sums


def in_blocks(count: int) -> Iterator[slice]:
    """Yield the parts that `count` items have for `grouped`."""
    return (slice(first, first + MAX_GROUPS) for first in range(0, count, MAX_GROUPS))


def _grouped(items: np.ndarray) -> np.ndarray:
    """Return (groups, columns): the items, or the sums of MAX_GROUPS random groups of them."""
    if len(items) <= MAX_GROUPS:
        return items.astype(np.float64)
    return grouped(items[part] for part in in_blocks(len(items)))


def _draws(count: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield (some, count): how often each of `count` groups is drawn, `count` draws a row."""
    random = np.random.default_rng([seed, 1])
    at_once = max(1, _BLOCK // count)
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = random.integers(0, count, (rows, count))
        drawn += np.arange(rows)[:, None] * count
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _swaps(count: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield (some, count) of 0 and 1: whether the two models' results are exchanged."""
    random = np.random.default_rng([seed, 2])
    at_once = max(1, _BLOCK // count)
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        yield random.integers(0, 2, (rows, count)).astype(np.float64)
