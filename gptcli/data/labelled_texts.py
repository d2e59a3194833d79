"""Texts with labels, as classification learns them, from rows of any kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptcli.config.schema import DataSettings
from gptcli.data.ledger import Reading
from gptcli.data.rows import Row, read_rows, whole_characters
from gptcli.data.sources import Source
from gptcli.errors import DataError

Objective = Literal["single-label", "multi-label", "regression"]


@dataclass(frozen=True)
class LabelledText:
    """A text or a pair of texts, and what is known of it."""

    where: str
    text: str
    text_pair: str | None
    labels: tuple[str, ...] = ()
    """One; of multi-label, any number."""
    number: float = 0.0
    """Regression: what is to be predicted."""

    @property
    def key(self) -> tuple[str, str | None]:
        return (self.text, self.text_pair)


class LabelledTexts:
    """Makes the rows of sources into labelled texts."""

    def __init__(self, objective: Literal["auto"] | Objective) -> None:
        """objective: auto is found out from the column names and the first label."""
        self._wanted = objective
        self.objective: Objective | None = None if objective == "auto" else objective

    def parse(self, source: Source, data: DataSettings, reading: Reading) -> Iterator[LabelledText]:
        """Yield the labelled texts of a source; rows without text are dropped and counted.

        Raises DataError, naming the row, for a label that cannot be one.
        """
        columns = data.columns
        needed = {"text": columns.text}
        if columns.text_pair is not None:
            needed["text_pair"] = columns.text_pair
        label_columns = [columns.label] if isinstance(columns.label, str) else columns.label
        if self._wanted == "auto" and len(label_columns) > 1:
            self.objective = "multi-label"
        # All columns of labels are called by the one setting that names them.
        for number, column in enumerate(label_columns):
            needed["label" if number == 0 else f"label[{number}]"] = column
        for row in read_rows(source, data, reading, needed):
            text = text_of(row, columns.text, data, reading)
            pair = None if columns.text_pair is None else text_of(row, columns.text_pair, data, reading)
            if not text or pair == "":
                reading.empty_documents_dropped += 1
                continue
            reading.documents += 1
            reading.bytes += len(text.encode()) + len((pair or "").encode())
            yield self._labelled(row, text, pair, label_columns, data)

    def _labelled(
        self, row: Row, text: str, pair: str | None, columns: list[str], data: DataSettings
    ) -> LabelledText:
        value = row.values[columns[0]]
        if self.objective is None:
            self.objective = "multi-label" if isinstance(value, list) else "single-label"
        if self.objective == "regression":
            return LabelledText(row.where, text, pair, number=_number(value, row.where))
        if self.objective == "single-label":
            return LabelledText(row.where, text, pair, (label_of(value, row.where),))
        if len(columns) > 1:
            labels = tuple(
                column for column in columns if _is_set(row.values[column], column, row.where)
            )
        elif isinstance(value, list):
            labels = tuple(label_of(item, row.where) for item in value)
        elif value is None or isinstance(value, str):
            parts = (value or "").split(data.label_separator)
            labels = tuple(part.strip() for part in parts if part.strip())
        else:
            labels = (label_of(value, row.where),)
        return LabelledText(row.where, text, pair, tuple(dict.fromkeys(labels)))


def text_of(row: Row, column: str, data: DataSettings, reading: Reading) -> str:
    """Return a text of a row, without white space around it; empty if there is none."""
    value = row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{row.where}: {column} is {type(value).__name__} {value!r:.60}, not a string.")
    return whole_characters(value, row.where, data, reading).replace("\r\n", "\n").strip()


def label_of(value: Any, where: str) -> str:
    """Return the label that a value stands for: text, or a whole number as it is written."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool | int):
        return str(value)
    if value is None or isinstance(value, str):
        raise DataError(f"{where}: the label is blank. Give it one, or leave the row out.")
    hint = " For numbers to predict, set training.objective to regression."
    raise DataError(
        f"{where}: the label is {type(value).__name__} {value!r:.60}; it must be text or a whole "
        f"number.{hint if isinstance(value, float) else ''}"
    )


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: the label is {value!r:.60}; regression needs a number.")
    return number


def _is_set(value: Any, column: str, where: str) -> bool:
    text = str(value).strip().lower()
    if text not in ("0", "1", "false", "true", "0.0", "1.0"):
        raise DataError(f"{where}: {column} is {value!r:.60}; a column for each label holds 0 or 1.")
    return text in ("1", "true", "1.0")


def labels_in_order(
    train: Sequence[LabelledText], validation: Sequence[LabelledText], given: list[str] | None
) -> list[str]:
    """Return the labels in the order of their numbers: as given, else numbers by size, names sorted.

    Raises DataError for a label that is not among those given or trained on, and for a single one.
    """
    known = set(given) if given else {label for item in train for label in item.labels}
    for item in (*train, *validation):
        for label in item.labels:
            if label not in known:
                among = "data.labels" if given else "the labels of the training data"
                raise DataError(
                    f"{item.where}: the label {label!r} is not among {among} ({_listed(sorted(known))})."
                )
    if len(known) < 2:
        raise DataError(
            f"{train[0].where if train else 'data.source'}: all examples have the label "
            f"{next(iter(known), 'none')!r}; there must be two at least to tell apart."
        )
    if given:
        return given
    if all(label.removeprefix("-").isdecimal() for label in known):
        return sorted(known, key=int)
    return sorted(known)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
