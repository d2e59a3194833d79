"""How far the preparation of data is, as whoever shows it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

ROWS_BETWEEN_NOTICES = 1000


@dataclass(frozen=True)
class PreparationProgress:
    """How far a stage of the preparation is."""

    stage: str
    done: int
    total: int | None
    """None if it is not known yet."""
    unit: str = "bytes"
    """What `done` and `total` count."""


Notify = Callable[[PreparationProgress], None]


def noticed(rows: Collection[T], stage: str, notify: Notify) -> Iterator[T]:
    """Yield them, saying now and then how many have been taken."""
    for number, row in enumerate(rows):
        if number and number % ROWS_BETWEEN_NOTICES == 0:
            notify(PreparationProgress(stage, number, len(rows), "rows"))
        yield row
