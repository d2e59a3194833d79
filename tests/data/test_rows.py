"""Tables of every kind become rows that hold what is written, and a row that is broken is named."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from gptcli.config.schema import ColumnSettings, DataSettings
from gptcli.data.ledger import Reading
from gptcli.data.rows import Row, read_rows
from gptcli.data.sources import BuiltinSource, FileSource, HubSource
from gptcli.errors import DataError

TEXT_AND_LABEL = {"text": "text", "label": "label"}


def write(file: Path, content: str | bytes) -> Path:
    """Write a file byte by byte as given: line ends are not translated."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def rows_of(
    file: Path, asked: dict[str, str] | None = None, *, optional: tuple[str, ...] = (), **settings: Any
) -> list[Row]:
    data = DataSettings(**settings)
    return list(read_rows(FileSource(file), data, Reading(), asked, optional=optional))


def values_of(
    file: Path, asked: dict[str, str] | None = None, *, optional: tuple[str, ...] = (), **settings: Any
) -> list[dict[str, Any]]:
    return [row.values for row in rows_of(file, asked, optional=optional, **settings)]


def refusal(
    file: Path, asked: dict[str, str] | None = None, *, optional: tuple[str, ...] = (), **settings: Any
) -> str:
    """Return the one line that reading the rows of `file` is refused with."""
    with pytest.raises(DataError) as caught:
        rows_of(file, asked, optional=optional, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet_bytes(table: pyarrow.Table) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


# ---- CSV and TSV


def test_a_quoted_csv_field_keeps_its_line_ends_and_the_row_is_named_by_its_last_line(
    tmp_path: Path,
) -> None:
    file = write(
        tmp_path / "a.csv",
        'text,label\r\n"two\r\nlines, one field",a\r\n\r\n"a ""b""\nc", d \r\nlast,e',
    )
    assert rows_of(file) == [
        Row(f"{file}:3", {"text": "two\r\nlines, one field", "label": "a"}),
        Row(f"{file}:6", {"text": 'a "b"\nc', "label": " d "}),
        Row(f"{file}:7", {"text": "last", "label": "e"}),
    ]


def test_in_tsv_quotes_commas_and_backslashes_mean_nothing_but_themselves(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.tsv",
        'label\ttext\r\nham\t"Ok lar... joking, he said\r\n'
        'spam\tWin a "prize" now\\\n"ham"\tit\'s 5" wide\n',
    )
    assert rows_of(file) == [
        Row(f"{file}:2", {"label": "ham", "text": '"Ok lar... joking, he said'}),
        Row(f"{file}:3", {"label": "spam", "text": 'Win a "prize" now\\'}),
        Row(f"{file}:4", {"label": '"ham"', "text": "it's 5\" wide"}),
    ]


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_no_type_is_guessed(tmp_path: Path, suffix: str, separator: str) -> None:
    written = ["NA", "null", "007", "1e5", "True", "nan", "", "1.0", "2024-01-01", " "]
    lines = [separator.join((text, "x")) for text in ["text", *written]]
    file = write(tmp_path / f"a{suffix}", "\n".join(lines))
    assert values_of(file) == [{"text": text, "x": "x"} for text in written]


def test_only_the_columns_that_are_asked_for_are_read_in_the_order_asked(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "id,body,topic\n1,hello,greeting\n")
    (values,) = values_of(file, {"label": "topic", "text": "body"})
    assert list(values.items()) == [("topic", "greeting"), ("body", "hello")]
    assert values_of(file, {"text": "body", "label": "body"}) == [{"body": "hello"}]


def test_a_file_without_a_header_is_read_by_the_names_that_are_given(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "ham\thello\nspam\tWIN\n")
    assert rows_of(file, TEXT_AND_LABEL, column_names=["label", "text"]) == [
        Row(f"{file}:1", {"text": "hello", "label": "ham"}),
        Row(f"{file}:2", {"text": "WIN", "label": "spam"}),
    ]


def test_a_first_row_that_may_be_no_header_is_told_from_one(tmp_path: Path) -> None:
    file = tmp_path / "spam.tsv"
    file.write_text(f"ham\t{'Go on. ' * 1000}\nspam\tWin!\n")
    assert refusal(file, {"text": "text"}) == (
        f"{file} has no column 'text'; its columns are: ham, {('Go on. ' * 6)[:40]}. "
        "Set data.columns.text. If the file has no header, set data.column_names."
    )


def test_a_row_that_does_not_fit_the_given_names_is_refused_by_line_and_counts(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", "ham\thello\nspam\tWIN\n")
    assert refusal(file, column_names=["label", "text", "date"]) == (
        f"{file}:1 has 2 fields, but data.column_names has 3 columns."
    )


@pytest.mark.parametrize(("line", "count"), [("three", 1), ("five,six,7", 3)])
def test_a_ragged_csv_line_is_named_with_both_counts(tmp_path: Path, line: str, count: int) -> None:
    file = write(tmp_path / "a.csv", f'text,label\n"one\nand more",a\n{line}\nfour,b\n')
    assert refusal(file) == f"{file}:4 has {count} fields, but the header has 2 columns."


def test_two_columns_of_one_name_are_refused_when_that_name_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label,text\none,a,two\n")
    expected = f"{file} has two columns 'text'; rename one of them."
    assert refusal(file) == expected
    assert refusal(file, {"text": "text"}) == expected
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["one"]), pyarrow.array(["two"])], names=["text", "text"]
    )
    file = write(tmp_path / "a.parquet", parquet_bytes(table))
    assert refusal(file, {"text": "text"}) == f"{file} has two columns 'text'; rename one of them."


def test_columns_of_one_name_that_are_not_read_do_no_harm(tmp_path: Path) -> None:
    # Spreadsheets write empty columns at the right like this.
    file = write(tmp_path / "a.csv", "v1,v2,,,\nham,hello,,,\n")
    assert values_of(file, {"text": "v2", "label": "v1"}) == [{"v2": "hello", "v1": "ham"}]


@pytest.mark.parametrize("content", ["text,label", "text,label\n", "text,label\r\n\r\n\r\n"])
def test_a_header_alone_is_a_table_without_rows(tmp_path: Path, content: str) -> None:
    file = write(tmp_path / "a.csv", content)
    reading = Reading()
    assert list(read_rows(FileSource(file), DataSettings(), reading, TEXT_AND_LABEL)) == []
    assert (reading.files, reading.rows) == (1, 0)
    assert "no column 'body'" in refusal(file, {"text": "body"})


def test_a_byte_order_mark_is_no_part_of_the_first_columns_name(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\none,a\n")
    assert values_of(file, TEXT_AND_LABEL) == [{"text": "one", "label": "a"}]
    file = write(tmp_path / "b.csv", '\ufeff"text","label"\none,a\n'.encode("utf-16-le"))
    assert values_of(file, encoding="utf-16-le") == [{"text": "one", "label": "a"}]


def test_a_latin_1_table_is_refused_as_utf8_and_read_as_itself(tmp_path: Path) -> None:
    # "text,label\n" is 11 bytes, "caf" three.
    file = write(tmp_path / "a.csv", b"text,label\ncaf\xe9 \xa35,a\n")
    message = refusal(file)
    assert message.startswith(f"{file}: byte 0xe9 at offset 14 is not UTF-8.")
    assert "data.encoding" in message
    assert values_of(file, encoding="latin-1") == [{"text": "café £5", "label": "a"}]


# ---- Columns that are missing


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_missing_column_is_answered_with_those_that_there_are_and_the_setting(
    tmp_path: Path, suffix: str
) -> None:
    content: dict[str, str | bytes] = {
        ".csv": "id,body\n1,hello\n",
        ".tsv": "id\tbody\n1\thello\n",
        ".parquet": parquet_bytes(pyarrow.table({"id": ["1"], "body": ["hello"]})),
    }
    file = write(tmp_path / f"a{suffix}", content[suffix])
    assert refusal(file, {"text": "body", "label": "topic"}) == (
        f"{file} has no column 'topic'; its columns are: id, body. Set data.columns.label."
    )


def test_a_json_row_without_a_key_is_named(tmp_path: Path) -> None:
    first, second = '{"text": "one", "label": "a"}', '{"text": "two", "n": 1}'
    said = "has no column 'label'; its columns are: text, n. Set data.columns.label."
    file = write(tmp_path / "a.jsonl", f"{first}\n\n{second}\n")
    assert refusal(file, TEXT_AND_LABEL) == f"{file}:3 {said}"
    file = write(tmp_path / "a.json", f"[{first}, {second}]")
    assert refusal(file, TEXT_AND_LABEL) == f"{file}: item 2 {said}"


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    columns = {"instruction": "instruction", "input": "input"}
    absent = write(tmp_path / "a.csv", "instruction,n\nsing,1\n")
    assert values_of(absent, columns, optional=("input",)) == [{"instruction": "sing"}]
    assert values_of(absent, {"input": "input"}, optional=("input",)) == [{}]
    present = write(tmp_path / "b.csv", "instruction,input\nsing,a song\n")
    assert values_of(present, columns, optional=("input",)) == [
        {"instruction": "sing", "input": "a song"}
    ]
    some = write(tmp_path / "c.jsonl", '{"instruction": "sing", "input": "x"}\n{"instruction": "hum"}\n')
    assert values_of(some, columns, optional=("input",)) == [
        {"instruction": "sing", "input": "x"},
        {"instruction": "hum"},
    ]
    lacking = {"instruction": "task", "input": "input"}
    assert "no column 'task'" in refusal(absent, lacking, optional=("input",))


# ---- JSONL and JSON


def test_nested_json_values_are_kept_as_they_are(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        '{"text": "007", "label": ["a", "b"], "n": 1.5}\n'
        "  \n"
        '{"text": null, "label": {"text": ["x"], "start": [3]}, "n": false}\r\n',
    )
    assert rows_of(file) == [
        Row(f"{file}:1", {"text": "007", "label": ["a", "b"], "n": 1.5}),
        Row(f"{file}:3", {"text": None, "label": {"text": ["x"], "start": [3]}, "n": False}),
    ]
    assert values_of(file, {"label": "label"})[0] == {"label": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "two",}', "is not JSON"),
        ("{'text': 'two'}", "is not JSON"),
        ('["two"]', 'is not a JSON object: ["two"].'),
        ('"two"', 'is not a JSON object: "two".'),
        ("2", "is not a JSON object: 2."),
    ],
)
def test_a_jsonl_line_that_is_no_object_is_named_by_its_number(
    tmp_path: Path, line: str, said: str
) -> None:
    file = write(tmp_path / "a.jsonl", f'{{"text": "one"}}\n{line}\n{{"text": "three"}}\n')
    assert refusal(file).startswith(f"{file}:2 {said}")


def test_rows_before_a_broken_one_are_yielded(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"text": "one"}\nbroken\n')
    reading = Reading()
    rows = read_rows(FileSource(file), DataSettings(), reading)
    assert next(rows).values == {"text": "one"}
    with pytest.raises(DataError, match=":2 is not JSON"):
        next(rows)
    assert reading.rows == 1


@pytest.mark.parametrize("template", ["{}", '{{"version": "1.1", "data": {}}}'])
def test_json_is_a_list_of_objects_or_has_it_as_data(tmp_path: Path, template: str) -> None:
    items = '[{"title": "A", "paragraphs": [{"qas": []}]},\n {"title": "B", "paragraphs": []}]'
    file = write(tmp_path / "a.json", template.format(items))
    assert rows_of(file) == [
        Row(f"{file}: item 1", {"title": "A", "paragraphs": [{"qas": []}]}),
        Row(f"{file}: item 2", {"title": "B", "paragraphs": []}),
    ]


@pytest.mark.parametrize(
    "content", ['{"text": "one"}', '{"data": {"text": "one"}}', '"one"', "1", "null"]
)
def test_json_that_is_neither_is_refused(tmp_path: Path, content: str) -> None:
    file = write(tmp_path / "a.json", content)
    assert refusal(file) == (
        f'{file} is neither a JSON list of objects nor an object with a list "data".'
    )


def test_json_that_is_broken_or_holds_no_objects_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", '[{"text": "one"},\n{"text": }]')
    message = refusal(file)
    assert message.startswith(f"{file} is not JSON: ")
    assert "line 2" in message
    file = write(tmp_path / "b.json", '[{"text": "one"}, "two"]')
    assert refusal(file) == f'{file}: item 2 is not a JSON object: "two".'


# ---- Text files, whose label is a name


def test_a_text_file_is_a_row_labelled_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "pos").mkdir()
    file = write(tmp_path / "pos" / "0_9.txt", "A fine film.\n\nReally.\n")
    assert rows_of(file, TEXT_AND_LABEL) == [
        Row(str(file), {"text": "A fine film.\n\nReally.\n", "label": "pos"})
    ]


@pytest.mark.parametrize("path", ["a.txt", "./a.txt", "../pos/a.txt", "../neg/../pos/a.txt"])
def test_the_folders_name_is_known_from_inside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    for name in ("pos", "neg"):
        (tmp_path / name).mkdir()
    write(tmp_path / "pos" / "a.txt", "A fine film.")
    monkeypatch.chdir(tmp_path / "pos")
    assert values_of(Path(path)) == [{"text": "A fine film.", "label": "pos"}]


def test_a_link_is_labelled_with_its_own_folder(tmp_path: Path) -> None:
    for name in ("pos", "store"):
        (tmp_path / name).mkdir()
    write(tmp_path / "store" / "1.txt", "A fine film.")
    (tmp_path / "pos" / "a.txt").symlink_to(tmp_path / "store" / "1.txt")
    assert values_of(tmp_path / "pos" / "a.txt") == [{"text": "A fine film.", "label": "pos"}]


def test_a_label_from_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    assert values_of(write(folder / "a.txt", "text")) == [{"text": "text", "label": "caf\\udce9"}]


def test_the_lines_of_a_text_file_are_rows_labelled_with_its_name_up_to_the_first_dot(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "spam.v2.txt", "one\r\n\r\n \t\n two \u2028 still two\nthree")
    assert rows_of(file, TEXT_AND_LABEL, text_unit="line") == [
        Row(f"{file}:1", {"text": "one", "label": "spam"}),
        Row(f"{file}:4", {"text": " two \u2028 still two", "label": "spam"}),
        Row(f"{file}:5", {"text": "three", "label": "spam"}),
    ]


def test_text_and_name_stand_in_the_columns_that_settings_name(tmp_path: Path) -> None:
    file = write(tmp_path / "ham.txt", "hello\n")
    columns = ColumnSettings(text="body", label="topic")
    asked = {"text": "body", "label": "topic"}
    expected = {"body": "hello", "topic": "ham"}
    assert values_of(file, asked, columns=columns, text_unit="line") == [expected]
    assert values_of(file, columns=columns, text_unit="line") == [expected]
    assert values_of(file, {"text": "body"}, columns=columns, text_unit="line") == [{"body": "hello"}]


def test_a_column_that_a_text_file_cannot_have_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "ham.txt", "hello\n")
    assert refusal(file, {"text": "text", "text_pair": "reply"}) == (
        f"{file} has no column 'reply'; its columns are: text, label. Set data.columns.text_pair."
    )
    columns = ColumnSettings(label=["rude", "kind"])
    assert "has no column 'rude'" in refusal(file, {"text": "text", "label": "rude"}, columns=columns)


# ---- Parquet, gzip, the hub, and what is built in


def test_parquet_values_keep_their_types_and_rows_are_numbered(tmp_path: Path) -> None:
    # More rows than are read at a time.
    table = pyarrow.table(
        {
            "text": [f"text {number}" for number in range(2001)],
            "label": list(range(2001)),
            "answers": [{"text": ["a"], "answer_start": [3]}] * 2001,
        }
    )
    file = write(tmp_path / "a.parquet", parquet_bytes(table))
    rows = rows_of(file)
    assert len(rows) == 2001
    assert rows[0] == Row(
        f"{file}: row 1",
        {"text": "text 0", "label": 0, "answers": {"text": ["a"], "answer_start": [3]}},
    )
    assert [row.where for row in rows] == [f"{file}: row {number}" for number in range(1, 2002)]
    assert [row.values["label"] for row in rows] == list(range(2001))
    assert values_of(file, {"label": "label"})[2000] == {"label": 2000}


@pytest.mark.parametrize("name", ["a.csv.gz", "A.TSV.GZ", "a.json.gz", "a.parquet.gz"])
def test_a_compressed_table_is_read_like_a_plain_one(tmp_path: Path, name: str) -> None:
    plain: dict[str, bytes] = {
        "a.csv.gz": b"text,label\none,a\ntwo,b\n",
        "A.TSV.GZ": b"text\tlabel\none\ta\ntwo\tb\n",
        "a.json.gz": b'[{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]',
        "a.parquet.gz": parquet_bytes(pyarrow.table({"text": ["one", "two"], "label": ["a", "b"]})),
    }
    file = write(tmp_path / name, gzip.compress(plain[name]))
    expected = [{"text": "one", "label": "a"}, {"text": "two", "label": "b"}]
    assert values_of(file, TEXT_AND_LABEL) == expected


def test_a_compressed_text_file_is_labelled_like_a_plain_one(tmp_path: Path) -> None:
    file = write(tmp_path / "ham.txt.gz", gzip.compress(b"hello\n"))
    assert values_of(file, text_unit="line") == [{"text": "hello", "label": "ham"}]


def test_the_rows_of_a_hub_data_set_are_numbered_and_chosen_like_those_of_a_file() -> None:
    table = datasets.Dataset.from_dict({"body": ["one", "two"], "label": [0, 1], "id": [7, 8]})
    source, reading = HubSource("someone/set", table), Reading()
    rows = list(read_rows(source, DataSettings(), reading, {"text": "body", "label": "label"}))
    assert rows == [
        Row("someone/set: row 1", {"body": "one", "label": 0}),
        Row("someone/set: row 2", {"body": "two", "label": 1}),
    ]
    assert (reading.files, reading.rows) == (0, 2)
    with pytest.raises(
        DataError, match="someone/set has no column 'text'; its columns are: body, label"
    ):
        list(read_rows(source, DataSettings(), Reading(), {"text": "text"}))


def test_hub_rows_without_any_of_the_optional_columns_are_still_rows() -> None:
    source = HubSource("set", datasets.Dataset.from_dict({"text": ["one", "two"]}))
    reading = Reading()
    rows = read_rows(source, DataSettings(), reading, {"input": "input"}, optional=["input"])
    assert list(rows) == [Row("set: row 1", {}), Row("set: row 2", {})]
    assert reading.rows == 2


def test_rows_and_files_are_counted_over_all_sources(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.csv", 'text\n"one\n1"\n\ntwo\n'),
        write(tmp_path / "b.jsonl", '{"text": "three"}\n\n'),
        write(tmp_path / "c.json", '[{"text": "four"}, {"text": "five"}]'),
        write(tmp_path / "d.parquet", parquet_bytes(pyarrow.table({"text": ["six", "seven", "eight"]}))),
        write(tmp_path / "e.txt", "nine\n\nten\n"),
    ]
    reading = Reading()
    data = DataSettings(text_unit="line")
    for file in files:
        list(read_rows(FileSource(file), data, reading, {"text": "text"}))
    assert (reading.files, reading.rows) == (5, 2 + 1 + 2 + 3 + 2)


def test_built_in_prose_has_no_rows() -> None:
    reading = Reading()
    with pytest.raises(DataError, match=r"^builtin:python-docs is plain text; it has no rows\.$"):
        list(read_rows(BuiltinSource("python-docs"), DataSettings(), reading))
    assert (reading.files, reading.rows) == (0, 0)


def test_built_in_docstrings_have_a_text_and_a_label() -> None:
    source = BuiltinSource("docstrings")
    row = next(read_rows(source, DataSettings(), Reading(), TEXT_AND_LABEL))
    assert (row.where, sorted(row.values)) == ("builtin:docstrings: row 1", ["label", "text"])
    row = next(read_rows(source, DataSettings(), Reading(), {"label": "label"}))
    assert list(row.values) == ["label"]
    with pytest.raises(DataError, match="has no column 'body'; its columns are: text, label"):
        next(read_rows(source, DataSettings(), Reading(), {"text": "body"}))
