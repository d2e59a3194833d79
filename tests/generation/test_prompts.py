"""Prompts are read line by line, and a line that cannot be read is named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from gptcli.errors import DataError
from gptcli.generation.prompts import Prompt, read_prompts


def texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def refusal(source: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        read_prompts(str(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\n\n  \ntwo", ["one", "two"]),
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("\ufeffone\n", ["one"]),
        ("  indented \t\n", ["  indented \t"]),
        # What str.splitlines would cut, and a prompt may hold.
        ("a\u2028b\x0cc\x85d\n", ["a\u2028b\x0cc\x85d"]),
        ("深圳市\nمرحبا\n🦉\n", ["深圳市", "مرحبا", "🦉"]),
        ('{"prompt": "as it stands"}\n', ['{"prompt": "as it stands"}']),
    ],
)
def test_every_line_of_a_text_file_is_a_prompt(
    tmp_path: Path, content: str, expected: list[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content.encode())
    assert texts(read_prompts(str(file))) == expected


def test_every_row_of_json_lines_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        '{"prompt": "two\\nlines"}',
        '{"text": "深圳"}',
        "",
        '{"id": 3, "prompt": "", "text": "not me"}',
    ]
    file.write_text("\n".join(rows), encoding="utf-8")
    assert texts(read_prompts(str(file))) == ["two\nlines", "深圳", ""]


def test_a_prompt_knows_the_line_that_it_stands_on(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\none\n\ntwo\n")
    assert [prompt.origin for prompt in read_prompts(str(file))] == [f"{file}:2", f"{file}:4"]


def test_a_file_below_the_home_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("one")
    assert texts(read_prompts("~/prompts.txt")) == ["one"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ('{"prompt": "one"}\n{"prompt": "two"}\n', ["one", "two"]),
        ('one\n{"prompt": "two"}\n', ["one", '{"prompt": "two"}']),
    ],
)
def test_standard_input_is_json_lines_if_its_first_line_is(
    monkeypatch: pytest.MonkeyPatch, content: str, expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    prompts = read_prompts("-")
    assert texts(prompts) == expected
    assert prompts[0].origin == "standard input:1"


def test_standard_input_that_is_closed_holds_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert refusal("-") == "standard input holds no prompt."


@pytest.mark.parametrize("content", ["", "\n\n", " \n"])
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(content)
    assert refusal(file) == f"{file} holds no prompt."


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"a prompt"', 'has no "prompt"'),
        ('["a prompt"]', 'has no "prompt"'),
        ('{"question": "a"}', 'has no "prompt"'),
        ('{"prompt": 3}', "that is a string"),
        ('{"prompt": null, "text": "a"}', "that is a string"),
    ],
    ids=lambda value: value[:20],
)
def test_a_line_that_holds_no_prompt_is_named(tmp_path: Path, line: str, what: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "fine"}\n' + line)
    message = refusal(file)
    assert message.startswith(f"{file}:2 ")
    assert what in message


def test_the_byte_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"caf\xe9\n")
    assert refusal(file) == (f"{file}: byte 0xe9 at offset 3 is not UTF-8. Convert the file to UTF-8.")


@pytest.mark.parametrize("name", ["nothing.txt", "~nobody-of-this-name/a.txt"])
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    assert refusal(name) == f"{name}: no such file (--input)."


def test_a_folder_is_no_file_of_prompts(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path} cannot be read (--input): Is a directory."


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet", ".txt.gz", ".CSV"])
def test_a_file_whose_lines_are_no_prompts_is_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"prompts{suffix}"
    file.write_text("prompt\none\n")
    assert "prompts are read from .txt (one a line) and .jsonl files" in refusal(file)


@pytest.mark.parametrize("name", ["prompts", "prompts.md", "prompts.en"])
def test_a_file_of_another_name_is_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("one\ntwo")
    assert texts(read_prompts(str(tmp_path / name))) == ["one", "two"]
