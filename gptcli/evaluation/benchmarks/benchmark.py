"""What a benchmark is, and how the values of its rows are read.

To add one: a file with a `Benchmark`, and a line in `table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptcli.config.schema import DataSettings
from gptcli.data.ledger import Reading
from gptcli.data.rows import read_rows
from gptcli.data.sources import ROW_SUFFIXES, Source
from gptcli.errors import DataError

Measure = Literal["accuracy", "normalized accuracy", "last word", "stereotype"]
"""What is said of the choices: whether the likeliest is right; the same with likelihoods a character; if
the one continuation is what greedy decoding gives; if the stereotyped of two is the likelier."""


@dataclass(frozen=True)
class Continuation:
    """A text and what may follow it."""

    context: str
    text: str
    """At least one character."""


@dataclass(frozen=True)
class Item:
    """One row: some continuations, of which one is right."""

    where: str
    continuations: tuple[Continuation, ...]
    gold: int
    """Number of the right one; of stereotypes, of the stereotyped one."""
    texts: tuple[str, ...]
    """The choices as they are written, whose characters count in the normalized accuracy."""
    group: str = ""
    """Phenomenon or kind of bias, which gets a score of its own."""

    @classmethod
    def of_choices(
        cls, where: str, context: str, choices: Sequence[str], gold: int, *, group: str = ""
    ) -> Item:
        """Return an item of one context, each choice behind it and a space."""
        continuations = tuple(Continuation(context, f" {choice}") for choice in choices)
        return cls(where, continuations, gold, tuple(choices), group)


Read = Callable[[Sequence[Source], DataSettings, Reading], Iterator[Item]]


@dataclass(frozen=True)
class HubRows:
    """Where the published rows are on the hub."""

    name: str
    split: str
    subset: str | None = None
    """"*" for all of them."""


@dataclass(frozen=True)
class Benchmark:
    """A test by name."""

    name: str
    about: str
    """What it asks for, in one line."""
    read: Read
    """Yields the items of sources; DataError, naming the row, for what is none."""
    measure: Measure
    files: tuple[str, ...]
    """Patterns of the names that its files have in a folder."""
    hub: HubRows | None = None
    suffixes: tuple[str, ...] = ROW_SUFFIXES
    """Of its files in a folder; "" for any."""
    caution: str = ""
    """What the score does not show."""


def each_row(to_item: Callable[[dict[str, Any], str], Item]) -> Read:
    """Return a reader that makes each row of the sources into an item."""

    def read(sources: Sequence[Source], data: DataSettings, reading: Reading) -> Iterator[Item]:
        for source in sources:
            for row in read_rows(source, data, reading):
                yield to_item(row.values, row.where)

    return read


def text_in(values: dict[str, Any], name: str, where: str) -> str:
    """Return a text of a row. Raises DataError if it is not there or blank."""
    value = values.get(name)
    if isinstance(value, str) and value.strip():
        return value
    listed = ", ".join(map(str, values)) or "none"
    what = "no text" if name in values else f"not there; the columns are: {listed}"
    raise DataError(f"{where}: {name} is {what}.")


def texts_in(values: dict[str, Any], name: str, where: str) -> list[str]:
    """Return a list of two texts or more. Raises DataError for anything else."""
    value = values.get(name)
    if isinstance(value, list) and len(value) > 1 and all(isinstance(t, str) and t for t in value):
        return value
    raise DataError(f"{where}: {name} is {value!r:.60}; it must be a list of two texts or more.")


def number_in(values: dict[str, Any], name: str, where: str, count: int, *, first: int = 0) -> int:
    """Return which of `count` choices, from 0, the row says is right; they are numbered from `first`.

    Raises DataError if there is none, or not as many choices.
    """
    value = values.get(name)
    if value in (None, ""):
        raise DataError(f"{where}: {name}, which choice is right, is missing. Test on labelled rows.")
    text = str(value).strip()
    number = int(text) - first if text.removeprefix("-").isdecimal() else -1
    if not 0 <= number < count:
        raise DataError(
            f"{where}: {name} is {value!r:.60}; it must be one of {first} to {first + count - 1}, for "
            f"{count} choices."
        )
    return number
