"""Conversations from the ways in which people write them down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.schema import DataSettings
from gptcli.data.conversations import ConversationItem, parse_conversations
from gptcli.data.ledger import Reading
from gptcli.data.sources import FileSource
from gptcli.errors import DataError


def parse(path: Path, *rows: dict[str, Any], **columns: str) -> tuple[list[ConversationItem], Reading]:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings.model_validate({"columns": columns})
    reading = Reading()
    return list(parse_conversations(FileSource(file), data, reading)), reading


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_an_instruction_is_asked_with_its_input_below(tmp_path: Path) -> None:
    items, _ = parse(
        tmp_path,
        {"instruction": " Add.", "input": "1 + 1\n", "output": "2"},
        {"instruction": "Greet.", "input": "", "output": "Hello!"},
        {"instruction": "Greet.", "output": "Hi!"},
        {"instruction": "Greet.", "input": None, "output": "Hey!"},
    )
    assert [item.messages for item in items] == [
        (("user", "Add.\n\n1 + 1"), ("assistant", "2")),
        (("user", "Greet."), ("assistant", "Hello!")),
        (("user", "Greet."), ("assistant", "Hi!")),
        (("user", "Greet."), ("assistant", "Hey!")),
    ]
    assert items[1].key == items[2].key != items[0].key


def test_prompt_and_completion_are_a_question_and_its_answer(tmp_path: Path) -> None:
    items, _ = parse(tmp_path, {"q": "Who?", "a": "Me."}, prompt="q", completion="a")
    assert items[0].messages == (("user", "Who?"), ("assistant", "Me."))
    assert items[0].where == f"{tmp_path}/rows.jsonl:1"


def test_messages_keep_their_turns(tmp_path: Path) -> None:
    messages = [
        turn("system", "Be brief."),
        turn("user", "Hi"),
        turn("assistant", "Hello."),
        turn("user", "Bye"),
        turn("assistant", "Bye."),
    ]
    items, _ = parse(tmp_path, {"messages": messages})
    assert items[0].as_dicts() == messages
    assert items[0].key == (("system", "Be brief."), ("user", "Hi"))


def test_rows_without_an_instruction_or_an_answer_are_dropped_and_counted(tmp_path: Path) -> None:
    items, reading = parse(
        tmp_path,
        {"instruction": "", "output": "2"},
        {"instruction": "Add.", "output": " \n"},
        {"instruction": "Add.", "output": None},
        {"instruction": "Add.", "output": "2"},
    )
    assert len(items) == 1
    assert (reading.rows, reading.documents, reading.empty_documents_dropped) == (4, 1, 3)


def test_messages_can_be_json_in_a_csv_field(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        'messages\n"[{""role"": ""user"", ""content"": ""Hi""}, '
        '{""role"": ""assistant"", ""content"": ""Yes?""}]"\n'
    )
    items = list(parse_conversations(FileSource(file), DataSettings(), Reading()))
    assert items[0].messages == (("user", "Hi"), ("assistant", "Yes?"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [turn("user", "Hi")]}, ":1: the conversation has no assistant turn"),
        ({"messages": []}, "they must be a list, not empty"),
        ({"messages": "Hi"}, "the messages are no JSON list: 'Hi'"),
        ({"messages": [{"role": "user"}]}, ":1, message 1 is {'role': 'user'}; it must have role"),
        ({"messages": [turn("human", "Hi")]}, ":1, message 1 has the role 'human'; it must be one of"),
        (
            {"messages": [{"role": "user", "content": 7}]},
            ":1, message 1: the content is 7, not a string",
        ),
        (
            {"messages": [turn("assistant", "Hi")]},
            ":1, message 1 is the assistant's; user and assistant speak in turns",
        ),
        (
            {"messages": [turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")]},
            ":1, message 3 is the assistant's",
        ),
        (
            {"messages": [turn("user", "a"), turn("system", "b"), turn("assistant", "c")]},
            "a system message stands at the beginning",
        ),
        ({"text": "a"}, ":1 has none of the columns of a conversation: messages; prompt and"),
        ({"instruction": "a", "output": 7}, ":1: output is int 7, not a string"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as raised:
        parse(tmp_path, row)
    assert message in str(raised.value)
