"""Questions about texts, as question answering learns them, from the ways in which people write them.

SQuAD   {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers", ...}]}]}]}
rows    question, context, answers; perhaps title and id

Answers are {text: [...], answer_start: [...]} as in `datasets`, a list of {text, answer_start} as in
SQuAD, or a text, whose place may stand beside it as answer_start. None at all, or is_impossible as in
SQuAD v2, says that the text does not answer the question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from gptcli.config.schema import DataSettings
from gptcli.data.labelled_texts import text_of
from gptcli.data.ledger import Reading
from gptcli.data.rows import Row, read_rows, whole_characters
from gptcli.data.sources import Source
from gptcli.errors import DataError

# Columns that a row may have, by the names that SQuAD and `datasets` give them.
TITLE, ID, IMPOSSIBLE, ANSWER, START, PARAGRAPHS = (
    *("title", "id", "is_impossible", "answer", "answer_start", "paragraphs"),
)


@dataclass(frozen=True)
class Question:
    """A question, the text to find the answer in, and the answers that are right."""

    where: str
    id: str
    """Its own, or its number in what was read."""
    title: str
    """Of the article that the text is from; may be empty."""
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    """(text, place of its first character in the context); none if the context does not answer it."""

    @property
    def key(self) -> tuple[str, str]:
        return (self.question, self.context)


class Questions:
    """Makes the rows of sources into questions."""

    def __init__(self, *, with_answers: bool = True) -> None:
        """with_answers: if not, those in the data are not looked at and need not be there; nothing is
        split then, so that titles and contexts are not remembered either.
        """
        self._with_answers = with_answers
        self._title_of: dict[str, str] = {}
        self._titles: set[str] = set()
        self.repaired = 0
        """Answers whose place was wrong, and was found."""
        self.dropped = 0
        """Answers that do not occur in their context."""
        self.left_out = 0
        """Questions that lost all their answers so."""

    def parse(self, source: Source, data: DataSettings, reading: Reading) -> Iterator[Question]:
        """Yield the questions of a source. Those without text, and those whose answers do not occur in
        their context, are left out and counted.

        Raises DataError, naming the row, for what is no question, and if no answer is in its context.
        """
        kept, first_lost = 0, ""
        for row in self._rows(source, data, reading):
            question = text_of(row, "question", data, reading)
            context = _string(row, "context")
            context = whole_characters(context, row.where, data, reading)
            if not question or not context.strip():
                reading.empty_documents_dropped += 1
                continue
            found = _answers_of(row) if self._with_answers else []
            answers = tuple(self._placed(found, context))
            if found and not answers:
                self.left_out += 1
                text = found[0][0]
                first_lost = first_lost or f"{row.where}: the answer {text!r:.60} is not in its context"
                continue
            kept += 1
            reading.documents += 1
            reading.bytes += len(question.encode()) + len(context.encode())
            title = str(row.values.get(TITLE) or "")
            if self._with_answers:
                self._titles.add(self._title_of.setdefault(context, title))
            name = row.values.get(ID)
            yield Question(
                row.where,
                str(reading.documents) if name in (None, "") else str(name),
                title,
                question,
                context,
                answers,
            )
        if first_lost and not kept:
            raise DataError(
                f"{first_lost}, and so it is with all {self.left_out:,} questions: answers must be "
                "copied from the context, letter for letter."
            )

    def group(self, question: Question, held_out: float) -> Hashable:
        """Return what `question` shares with those that belong on the same side of a split: the title
        of the article, or the context where there are no titles, or too few to hold out that share.
        """
        # One context under two titles counts as the first one's.
        title = self._title_of[question.context]
        return (title or question.context) if self.splits_by_title(held_out) else question.context

    def splits_by_title(self, held_out: float) -> bool:
        """Whether there are enough titles to hold out that share of them, and keep some."""
        return 0 < round(held_out * len(self._titles)) < len(self._titles)

    def _rows(self, source: Source, data: DataSettings, reading: Reading) -> Iterator[Row]:
        """Yield a row a question, with the names of `ColumnSettings` for its columns."""
        columns = data.columns
        needed = ["question", "context", *(["answers"] if self._with_answers else [])]
        names = {name: getattr(columns, name) for name in ("question", "context", "answers")}
        names |= {name: name for name in (TITLE, ID, IMPOSSIBLE, ANSWER, START, PARAGRAPHS)}
        # The others are for the message that something is missing.
        for row in read_rows(source, data, reading, names, optional=names, keep_others=True):
            if PARAGRAPHS in row.values:
                reading.rows -= 1  # An article is no row.
                for found in _questions_of_article(row, self._with_answers):
                    reading.rows += 1
                    yield found
                continue
            values = {name: row.values[column] for name, column in names.items() if column in row.values}
            if "answers" not in values and {ANSWER, IMPOSSIBLE} & values.keys():
                values["answers"] = values.get(ANSWER)
            for name in needed:
                if name not in values:
                    listed = ", ".join(map(str, list(row.values)[:20])) or "none"
                    raise DataError(
                        f"{row.where} has no column {names[name]!r}; its columns are: {listed}. "
                        f"Set data.columns.{name}."
                    )
            yield Row(row.where, values)

    def _placed(self, answers: list[tuple[str, int | None]], context: str) -> Iterator[tuple[str, int]]:
        for text, start in answers:
            place = place_of(text, start, context)
            if place is None:
                self.dropped += 1
                continue
            self.repaired += start not in (None, place)
            yield text, place


def place_of(text: str, start: int | None, context: str) -> int | None:
    """Return where `text` occurs in the context: nearest to `start`, or first; None if nowhere."""
    begin = max(0, start or 0)
    # From the left, the last that begins at `begin` or before it.
    before, after = context.rfind(text, 0, begin + len(text)), context.find(text, begin)
    places = [place for place in (before, after) if place >= 0]
    return min(places, key=lambda place: abs(place - begin), default=None)


def _questions_of_article(row: Row, with_answers: bool) -> Iterator[Row]:
    for number, paragraph in _members(row.values, PARAGRAPHS, row.where):
        place = f"{row.where}, paragraph {number}"
        for count, qa in _members(paragraph, "qas", place):
            where = f"{place}, question {count}"
            values = {TITLE: row.values.get(TITLE), "context": paragraph.get("context"), **qa}
            if with_answers and "answers" not in qa and not qa.get(IMPOSSIBLE):
                raise DataError(f'{where} has no "answers"; it has {", ".join(qa) or "nothing"}.')
            yield Row(where, {"question": None, "answers": None} | values)


def _members(holder: dict[str, Any], name: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of the list `name` with their numbers. Raises DataError for what is none."""
    members = holder.get(name)
    if not isinstance(members, list):
        raise DataError(f'{where}: "{name}" is {members!r:.60}; as in SQuAD it must be a list.')
    for number, member in enumerate(members, 1):
        if not isinstance(member, dict):
            raise DataError(f'{where}: number {number} of "{name}" is {member!r:.60}, not an object.')
        yield number, member


def _string(row: Row, name: str) -> str:
    value = row.values[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{row.where}: {name} is {type(value).__name__} {value!r:.60}, not a string.")
    return value


def _answers_of(row: Row) -> list[tuple[str, int | None]]:
    """Return (text, place or None) of each answer that is not blank, without white space around it."""
    if _is_true(row.values.get(IMPOSSIBLE)):
        return []
    value = _from_json(row.values["answers"])
    pairs: list[tuple[Any, Any]]
    match value:
        case None:
            pairs = []
        case str():
            pairs = [(value, row.values.get(START))]
        case {"text": list(texts), "answer_start": list(starts)} if len(texts) == len(starts):
            pairs = list(zip(texts, starts, strict=True))
        case {"text": list(texts), **rest} if rest.get("answer_start") is None:
            pairs = [(text, None) for text in texts]
        case {"text": str(text), **rest}:
            pairs = [(text, rest.get("answer_start"))]
        case list():
            pairs = [
                (answer.get("text"), answer.get("answer_start"))
                if isinstance(answer, dict)
                else (answer, None)
                for answer in value
            ]
        case _:
            pairs = [(value, None)]
    answers = []
    for text, start in pairs:
        if not isinstance(text, str):
            raise DataError(
                f"{row.where}: the answers are {value!r:.60}; they must be {{text: [...], "
                "answer_start: [...]}, as many of each, a list of {text, answer_start}, or a text."
            )
        bare = text.strip()
        if bare:
            place = _start(start, row.where)
            leading = len(text) - len(text.lstrip())
            answers.append((bare, None if place is None else place + leading))
    return answers


def _from_json(value: Any) -> Any:
    """Return what a field of a CSV file holds as JSON; any other value, and any other text, as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(read, dict) or all(isinstance(answer, dict | str) for answer in read):
            return read
    return value


def _is_true(value: Any) -> bool:
    return value.strip().lower() in ("true", "1") if isinstance(value, str) else bool(value)


def _start(value: Any, where: str) -> int | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if math.isnan(number):  # As pandas writes what is not there.
        return None
    if not number.is_integer():
        raise DataError(f"{where}: answer_start is {value!r:.60}; it must be a whole number.")
    return int(number)
