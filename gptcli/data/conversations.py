"""Conversations, as instruction tuning learns them, from the three ways in which people write them down.

messages              a list of {role, content}; roles system, user and assistant
prompt, completion    what is asked, and what should follow
instruction, input, output    as in Stanford Alpaca; the input, what it is about, may be empty
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptcli.config.schema import DataSettings
from gptcli.data.labelled_texts import text_of
from gptcli.data.ledger import Reading
from gptcli.data.rows import Row, read_rows, whole_characters
from gptcli.data.sources import Source
from gptcli.errors import DataError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ConversationItem:
    """Who said what, in order; the last word is the assistant's."""

    where: str
    messages: tuple[tuple[str, str], ...]
    """(role, content)."""

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """All up to the first reply."""
        first = next(i for i, (role, _) in enumerate(self.messages) if role == "assistant")
        return self.messages[:first]

    def as_dicts(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.messages]


def parse_conversations(
    source: Source, data: DataSettings, reading: Reading
) -> Iterator[ConversationItem]:
    """Yield the conversations of a source; rows without an instruction or without an answer are dropped
    and counted.

    Raises DataError, naming the row, for what is no conversation.
    """
    columns = data.columns
    names = ("messages", "prompt", "completion", "instruction", "input", "output")
    optional = {name: getattr(columns, name) for name in names}
    for row in read_rows(source, data, reading, optional, optional=names):
        messages = tuple(_messages_of_row(row, data, reading))
        if not all(content for _, content in messages):
            reading.empty_documents_dropped += 1
            continue
        _check_turns(messages, row.where)
        reading.documents += 1
        reading.bytes += sum(len(content.encode()) for _, content in messages)
        yield ConversationItem(row.where, messages)


def _messages_of_row(row: Row, data: DataSettings, reading: Reading) -> list[tuple[str, str]]:
    columns = data.columns
    if columns.messages in row.values:
        return _messages_of_list(row.values[columns.messages], row.where, data, reading)
    if {columns.prompt, columns.completion} <= row.values.keys():
        asked, answer = columns.prompt, columns.completion
    elif {columns.instruction, columns.output} <= row.values.keys():
        asked, answer = columns.instruction, columns.output
    else:
        raise DataError(
            f"{row.where} has none of the columns of a conversation: {columns.messages}; "
            f"{columns.prompt} and {columns.completion}; or {columns.instruction}, {columns.input} and "
            f"{columns.output}. It has {', '.join(row.values) or 'no such one'}; set data.columns."
        )
    question = text_of(row, asked, data, reading)
    if asked == columns.instruction and row.values.get(columns.input) is not None:
        about = text_of(row, columns.input, data, reading)
        question = f"{question}\n\n{about}" if question and about else question
    return [("user", question), ("assistant", text_of(row, answer, data, reading))]


def _messages_of_list(
    value: Any, where: str, data: DataSettings, reading: Reading
) -> list[tuple[str, str]]:
    if isinstance(value, str):  # As in a CSV file.
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{where}: the messages are no JSON list: {value!r:.60}.") from None
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: the messages are {value!r:.60}; they must be a list, not empty.")
    messages = []
    for number, message in enumerate(value, 1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{place} is {message!r:.60}; it must have role and content.")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise DataError(f"{place} has the role {role!r:.60}; it must be one of {', '.join(ROLES)}.")
        if not isinstance(content, str):
            raise DataError(f"{place}: the content is {content!r:.60}, not a string.")
        content = whole_characters(content, place, data, reading).replace("\r\n", "\n").strip()
        messages.append((role, content))
    return messages


def _check_turns(messages: tuple[tuple[str, str], ...], where: str) -> None:
    """Refuse a conversation of which nothing, or something else than it says, would be learnt."""
    roles = [role for role, _ in messages]
    if "assistant" not in roles:
        raise DataError(f"{where}: the conversation has no assistant turn; there is nothing to learn.")
    if "system" in roles[1:]:
        raise DataError(f"{where}: a system message stands at the beginning of a conversation only.")
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2 + 1)
    for number, (role, other) in enumerate(zip(turns, expected, strict=False)):
        if role != other:
            raise DataError(
                f"{where}, message {number + 1 + len(roles) - len(turns)} is the {role}'s; user and "
                "assistant speak in turns, the user first."
            )
