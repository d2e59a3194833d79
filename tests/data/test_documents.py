"""Every kind of file becomes the documents that it holds, and what cannot be read is named."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

import gptcli.data.documents
import gptcli.data.rows
from gptcli.config.schema import ColumnSettings, DataSettings
from gptcli.data.documents import read_documents, read_placed
from gptcli.data.ledger import Reading
from gptcli.data.sources import HubSource, find_sources
from gptcli.data.tokenizing import encode_batch, load_tokenizer
from gptcli.errors import ConfigError, DataError, EnvironmentProblem
from tests.conftest import SHARED_DATA


def read_in_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Read files in blocks of this many bytes, so that small ones have several."""
    for module in (gptcli.data.rows, gptcli.data.documents):
        monkeypatch.setattr(module, "READ_BYTES", size)


def read(source: str | Path | list[str], **settings: Any) -> tuple[list[str], Reading]:
    """Return the documents of `source`, whole, and what was counted."""
    data = DataSettings(**settings)
    reading = Reading()
    documents, open_document = [], ""
    item = str(source) if isinstance(source, Path) else source
    for text, ends_document in read_documents(find_sources(item, data, reading), data, reading):
        open_document += text
        if ends_document:
            documents.append(open_document)
            open_document = ""
    assert open_document == "", "a document was not ended"
    assert reading.documents == len(documents)
    assert reading.bytes == sum(len(document.encode()) for document in documents)
    return documents, reading


def refusal(source: str | Path | list[str], **settings: Any) -> str:
    """Return the one line that reading `source` is refused with."""
    with pytest.raises(DataError) as caught:
        read(source, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet_bytes(column: list[Any], name: str = "text") -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({name: column}), buffer)
    return buffer.getvalue()


def csv_bytes(rows: list[list[str]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


DOCUMENTS = ["Grüße,\nWelt", 'she said "no", twice', "深圳市\n\n福田区"]
FILES: dict[str, tuple[bytes, list[str]]] = {
    "a.txt": ("\n".join(DOCUMENTS).encode(), ["\n".join(DOCUMENTS)]),
    "a.md": (b"# Title\n\ntext", ["# Title\n\ntext"]),
    "a.jsonl": ("\n".join(json.dumps({"text": text}) for text in DOCUMENTS).encode(), DOCUMENTS),
    "a.csv": (csv_bytes([["id", "text"], *(["7", text] for text in DOCUMENTS)]), DOCUMENTS),
    "a.parquet": (parquet_bytes(DOCUMENTS), DOCUMENTS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_its_type_says_gzip_or_not(tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"{name.upper()}.GZ").write_bytes(gzip.compress(content))
    for file in (tmp_path / name, tmp_path / f"{name.upper()}.GZ"):
        documents, reading = read(file)
        assert documents == expected
        assert reading.files == 1
        assert reading.rows == (0 if name in ("a.txt", "a.md") else 3)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_column_of_another_name_is_read_when_it_is_given(tmp_path: Path, name: str) -> None:
    content = {
        "a.jsonl": b'{"body": "yes", "text": "no"}',
        "a.csv": b"text,body\nno,yes\n",
        "a.parquet": parquet_bytes(["yes"], "body"),
    }[name]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name, columns=ColumnSettings(text="body"))[0] == ["yes"]
    message = refusal(tmp_path / name, columns=ColumnSettings(text="story"))
    assert "no column 'story'" in message
    assert "body" in message


def test_a_folder_is_read_with_its_subfolders_but_not_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c.jsonl", ".hidden.txt", ".git/config.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "c"}' if name.endswith("jsonl") else name)
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    documents, reading = read(tmp_path)
    assert documents == ["c", "a/z.txt", "b.txt"]
    assert reading.files_left_out == [str(tmp_path / "link"), str(tmp_path / "picture.png")]


def test_globs_and_lists_read_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.txt", "c.md", "d.png", "[x].txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    documents, reading = read("?.*")
    assert documents == ["a.txt", "b.txt", "c.md"]
    assert reading.files_left_out == ["d.png"]
    assert read(["c.md", "*.txt", str(tmp_path / "c.md"), "./a.txt"])[0] == [
        "c.md",
        "[x].txt",
        "a.txt",
        "b.txt",
    ]
    assert read("[x].txt")[0] == ["[x].txt"]
    assert read(str(tmp_path / "**" / "*.md"))[0] == ["c.md"]


@pytest.mark.parametrize(
    ("make", "source", "said"),
    [
        (None, "missing.txt", "no such file or folder"),
        (None, "some/where/else", "no such file or folder"),
        (None, "*.txt", "no text file matches"),
        ("notes.docx", "notes.docx", ".docx"),
        ("notes", "notes", "(no suffix)"),
        ("folder/a.png", "folder", "holds no text"),
        ("folder/a.png", "folder/*", "no text file matches"),
        (None, "x" * 300 + ".txt", "cannot be looked up"),
        (None, "~no-such-user-here/a.txt", "cannot be looked up"),
    ],
)
def test_a_source_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str | None, source: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if make:
        Path(make).parent.mkdir(exist_ok=True)
        Path(make).write_text("text")
    message = refusal(source)
    assert said in message
    assert source[:60] in message


def test_a_file_that_the_system_cannot_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    message = refusal(tmp_path)
    assert message == f"{tmp_path / 'b.txt'} cannot be read: No such file or directory."


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_files_and_folders_without_permission_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    locked_file, locked_folder = tmp_path / "b.txt", tmp_path / "locked"
    locked_folder.mkdir()
    (locked_folder / "c.txt").write_text("text")
    locked_folder.chmod(0)
    try:
        assert refusal(tmp_path) == f"{locked_folder} cannot be read: Permission denied."
        assert "Permission denied" in refusal(locked_folder / "c.txt")
    finally:
        locked_folder.chmod(0o700)
    locked_file.write_text("text")
    locked_file.chmod(0)
    assert refusal(tmp_path) == f"{locked_file} cannot be read: Permission denied."


def test_a_file_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(name)).write_text("text")
    data = DataSettings()
    (source,) = find_sources(str(tmp_path), data, Reading())
    assert str(source) == f"{tmp_path}/caf\\udce9.txt"
    assert [piece.text for piece in read_documents([source], data, Reading())] == ["text"]


def test_a_name_that_is_no_path_needs_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    # What HF_HUB_OFFLINE sets, which is read when the libraries are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        EnvironmentProblem, match="no file or folder here, and the hub cannot be reached"
    ):
        read("someone/some-data-set")


def test_only_one_text_is_built_in() -> None:
    with pytest.raises(ConfigError, match="builtin:python-docs"):
        read("builtin:shakespeare")


def test_a_hub_data_set_is_read_row_by_row() -> None:
    rows = datasets.Dataset.from_dict({"text": ["one", None, "two"], "n": [1, 2, 3]})
    reading = Reading()
    pieces = list(read_documents([HubSource("name", rows)], DataSettings(), reading))
    assert [piece.text for piece in pieces] == ["one", "two"]
    assert (reading.rows, reading.empty_documents_dropped) == (3, 1)


# ---- What is removed, dropped and counted


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_removed_and_counted(tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    documents, reading = read(tmp_path / name)
    assert documents == expected
    assert reading.byte_order_marks_removed == 1


def test_crlf_becomes_lf_and_a_lone_carriage_return_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\r\ntwo\rthree\r\n\r\nfour\r")
    documents, reading = read(file)
    assert documents == ["one\ntwo\rthree\n\nfour\r"]
    assert reading.carriage_returns_removed == 3


def test_each_line_is_a_document_when_the_unit_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("  one \r\n\r\n \t\ntwo\u2028still two\rand more\nthree\r".encode())
    documents, reading = read(file, text_unit="line")
    assert documents == ["  one ", "two\u2028still two\rand more", "three\r"]
    assert reading.carriage_returns_removed == 2
    assert reading.empty_documents_dropped == 2


@pytest.mark.parametrize(
    ("text", "expected", "markers", "dropped"),
    [
        ("one<|endoftext|>two", ["one", "two"], 1, 0),
        ("one<|endoftext|>\n", ["one"], 1, 0),
        ("<|endoftext|>one", ["one"], 1, 1),
        ("one<|endoftext|><|endoftext|> \n<|endoftext|>two", ["one", "two"], 3, 2),
        ("one<|ENDOFTEXT|>", ["one<|ENDOFTEXT|>"], 0, 0),
        (" \n one \n", [" \n one \n"], 0, 0),
        (" \n\t", [], 0, 1),
    ],
)
def test_a_literal_end_of_text_ends_a_document(
    tmp_path: Path, text: str, expected: list[str], markers: int, dropped: int
) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text)
    documents, reading = read(file)
    assert documents == expected
    assert reading.end_of_text_markers == markers
    assert reading.empty_documents_dropped == dropped


def test_blank_and_null_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": ""}\n\n{"text": null}\n{"text": "one<|endoftext|>"}\n{"text": " \\n"}\n')
    documents, reading = read(file)
    assert documents == ["one"]
    assert (reading.rows, reading.empty_documents_dropped) == (4, 3)


# ---- Cutting big documents


def words(count: int) -> str:
    generator = random.Random(0)
    return " ".join(
        "".join(generator.choices("abcdefghij'", k=generator.randint(1, 9))) for _ in range(count)
    )


def white_space_runs(count: int) -> str:
    generator = random.Random(1)
    runs = [" ", "  ", "\n", " \n", "\r\n", "\t\t", "\r\n\r\n ", "\u3000 ", "\xa0", "   \n\n  "]
    return "".join(f"w{number}{generator.choice(runs)}" for number in range(count)) + "don't"


def chinese(count: int) -> str:
    generator = random.Random(2)
    return "".join(
        generator.choice("天地玄黄宇宙洪荒日月盈昃1x'") * 3 + generator.choice("、。")
        for _ in range(count)
    )


def markers(count: int) -> str:
    return "\U0001f600<|endoftext|>" * count


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedTokenizerFast:
    folder = SHARED_DATA / "gpt2-tokenizer"
    if not folder.is_dir():
        pytest.skip("GPT-2's tokenizer (../shared/data) is not here")
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("text_of", [words, white_space_runs, chinese, markers])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_cutting_a_big_document_does_not_change_its_tokens(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpt2: PreTrainedTokenizerFast,
    text_of: Callable[[int], str],
    suffix: str,
) -> None:
    text = text_of(400)
    file = tmp_path / f"a{suffix}"
    file.write_bytes((text if suffix == ".txt" else json.dumps({"text": text})).encode())
    whole = text.replace("\r\n", "\n").split("<|endoftext|>")
    expected = encode_batch(gpt2, [document for document in whole if document])
    data = DataSettings()
    for read_bytes in (31, 32, 33, 50, 127):
        read_in_blocks(monkeypatch, read_bytes)
        reading = Reading()
        pieces = list(read_documents(find_sources(str(file), data, reading), data, reading))
        assert max(len(piece.text) for piece in pieces) <= 3 * read_bytes
        found: list[list[int]] = [[]]
        for piece, ids in zip(pieces, encode_batch(gpt2, [text for text, _ in pieces]), strict=True):
            found[-1] += ids
            if piece.ends_document:
                found.append([])
        assert found[:-1] == expected
        assert reading.carriage_returns_removed == text.count("\r\n")
        assert reading.end_of_text_markers == text.count("<|endoftext|>")


@pytest.mark.parametrize("text", ["x" * 1000, "\r\n" * 300 + "x", "x" + "\n" * 999, "é" * 501])
def test_a_document_that_has_no_good_place_to_cut_is_cut_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    read_in_blocks(monkeypatch, 33)
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode())
    documents, reading = read(file)
    assert documents == [text.replace("\r\n", "\n")]
    assert reading.carriage_returns_removed == text.count("\r\n")
    assert read(file, text_unit="line")[0] == text.split()


def test_rows_longer_than_a_piece_come_out_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in_blocks(monkeypatch, 64)
    rows = [words(50), "short", chinese(40), "", "x" * 500]
    contents = {
        "a.csv": csv_bytes([["text"], *([row] for row in rows)]),
        "a.jsonl": "\n".join(json.dumps({"text": row}) for row in rows).encode(),
        "a.parquet": parquet_bytes(rows),
        "b.txt": "\n".join(rows).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name, text_unit="line")[0] == [row for row in rows if row]


# ---- Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("read_bytes", [3, 1 << 20])
def test_other_encodings_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, read_bytes: int
) -> None:
    read_in_blocks(monkeypatch, read_bytes)
    text = "Grüße, naïve café: £5\n" * 5
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (tmp_path / "b.csv").write_bytes(f'text\n"{text}"\n'.encode(encoding))
    assert read(tmp_path / "a.txt", encoding=encoding)[0] == [text]
    assert read(tmp_path / "b.csv", encoding=encoding)[0] == [text]


def test_shift_jis_is_refused_as_utf8_and_read_as_itself(shared_data: Path) -> None:
    for file in sorted((shared_data / "languages" / "japanese-shift-jis").glob("*.txt")):
        content = file.read_bytes()
        with pytest.raises(UnicodeDecodeError) as expected:
            content.decode()
        offset = expected.value.start
        message = refusal(file)
        assert f"byte 0x{content[offset]:02x} at offset {offset:,} is not UTF-8" in message
        assert "data.encoding" in message
        assert read(file, encoding="shift_jis")[0] == [content.decode("shift_jis").replace("\r\n", "\n")]


def test_utf16_is_recognised_in_the_refusal(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("hello".encode("utf-16"))
    assert "set data.encoding to utf-16" in refusal(file)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3(", b"\xe2\x82(", b"\xf0\x9f\x98", b"\x80"])
@pytest.mark.parametrize("offset", [7, 2**20 - 1, 2_500_001])
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_an_undecodable_byte_is_named_by_its_offset_in_the_text(
    tmp_path: Path, bad: bytes, offset: int, suffix: str
) -> None:
    file = tmp_path / f"a{suffix}"
    content = b"x" * (offset - 1) + b"\n" + bad
    file.write_bytes(gzip.compress(content, 1) if suffix == ".txt.gz" else content)
    assert f"{file}: byte 0x{bad[0]:02x} at offset {offset:,} is not UTF-8." in refusal(file)


@pytest.mark.parametrize("encoding", ["shift_jis", "utf-16-le", "utf-8-sig", "ascii"])
@pytest.mark.parametrize("read_bytes", [2, 5, 1 << 20])
def test_the_offset_is_exact_in_other_encodings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, read_bytes: int
) -> None:
    read_in_blocks(monkeypatch, read_bytes)
    bad = {"utf-16-le": b"\x00\xdc"}.get(encoding, b"\xff")
    good = "some good text".encode(encoding)
    file = tmp_path / "a.txt"
    file.write_bytes(good + bad + b"more")
    assert f"byte 0x{bad[0]:02x} at offset {len(good)} is not" in refusal(file, encoding=encoding)


@pytest.mark.parametrize("read_bytes", [1, 3, 1 << 20])
def test_undecodable_bytes_are_replaced_and_counted_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    read_in_blocks(monkeypatch, read_bytes)
    file = tmp_path / "a.txt"
    # Two lone bytes, a sequence of three cut short, and a surrogate, which is three wrong bytes.
    content = "ä".encode() + b"\xff\xfe ok \xf0\x9f\x98 \xed\xa0\x80\xc3"
    file.write_bytes(content)
    documents, reading = read(file, encoding_errors="replace")
    assert documents == [content.decode(errors="replace")]
    assert reading.undecodable_bytes_replaced == 2 + 3 + 3 + 1


def test_half_a_surrogate_pair_in_json_is_named_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "whole \\ud83d\\ude00"}\n{"text": "cut \\ud83d"}\n')
    message = refusal(file)
    assert message.startswith(f"{file}:2: \\ud83d is half of a surrogate pair")
    documents, reading = read(file, encoding_errors="replace")
    assert documents == ["whole \U0001f600", "cut \ufffd"]
    assert reading.lone_surrogates_replaced == 1


@pytest.mark.parametrize("encoding", ["base64", "rot13", "utf-99", "utf 8 please", "a\0b", "undefined"])
def test_an_encoding_that_python_lacks_is_a_config_error(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=r"data\.encoding is"):
        read(tmp_path / "a.txt", encoding=encoding)


# ---- Rows that are not what they should be


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text\none\ntwo,three\n", ":3 has 2 fields, but the header has 1 columns"),
        (b'text\n"never closed\n', "is not valid CSV"),
        (b'text\n"a"b\n', ":2 is not valid CSV"),
        (b"id,body\n1,one\n", "no column 'text'; its columns are: id, body"),
        (b"\n", "no column 'text'"),
    ],
)
def test_csv_that_is_broken_is_named_by_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    message = refusal(file)
    assert message.startswith(str(file))
    assert said in message


def test_csv_keeps_line_ends_in_quotes_skips_blank_lines_and_takes_huge_fields(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    huge = "word " * 100_000  # Half a megabyte; Python's own limit is 128 KiB.
    file.write_bytes(
        b'id,text\r\n1,"two\r\nlines\n"\r\n\r\n2,"a ""b"", c"\r\n3,' + huge.encode() + b"\r\n"
    )
    documents, reading = read(file)
    assert documents == ["two\nlines\n", 'a "b", c', huge]
    assert (reading.rows, reading.carriage_returns_removed) == (3, 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "one"', "is not JSON"),
        ("just text", "is not JSON"),
        ('{"text": "one"} {"text": "two"}', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"text": "one", "n": ' + "1" * 5000 + "}", "is not JSON"),
        ('["text"]', "is not a JSON object"),
        ('{"body": "one"}', "no column 'text'; its columns are: body"),
        ('{"text": 5}', "the text is int 5, not a string"),
        ('{"text": ["one"]}', "the text is list ['one'], not a string"),
    ],
)
def test_a_jsonl_line_that_is_broken_is_named_by_its_number(
    tmp_path: Path, line: str, said: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n\n' + line + "\n")
    message = refusal(file)
    assert message.startswith(f"{file}:3")
    assert said in message


@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.gz", ".csv.gz", ".parquet.gz"])
@pytest.mark.parametrize("damage", ["cut short", "bit flipped", "no gzip"])
def test_a_gzip_file_that_is_damaged_is_refused(tmp_path: Path, suffix: str, damage: str) -> None:
    file = tmp_path / f"a{suffix}"
    content = FILES[f"a{suffix.removesuffix('.gz')}"][0]
    whole = gzip.compress(content)
    # The eighth byte from the end belongs to the checksum of the content.
    flipped = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    file.write_bytes(
        {"cut short": whole[:-12], "bit flipped": flipped, "no gzip": b"plain text"}[damage]
    )
    message = refusal(file)
    assert message.startswith(f"{file} is not a whole gzip file")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_parquet_file_that_is_damaged_is_refused(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(FILES["a.parquet"][0][:keep] or b"PAR1 no more than a name PAR1")
    assert refusal(file).startswith(str(file))


def test_a_parquet_page_that_is_damaged_is_refused(tmp_path: Path) -> None:
    content = bytearray(parquet_bytes([f"text number {number}" for number in range(5000)]))
    content[4:2000] = bytes(1996)
    (tmp_path / "a.parquet").write_bytes(content)
    assert refusal(tmp_path / "a.parquet").startswith(str(tmp_path / "a.parquet"))


def test_parquet_numbers_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes([1, 2]))
    assert refusal(tmp_path / "a.parquet").endswith("row 1: the text is int 1, not a string.")


# ---- Fingerprints


def test_a_fingerprint_names_content_and_type_but_not_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "c.md").write_text("text")
    (tmp_path / "d.txt").write_text("texT")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text"))
    prints = {
        Path(str(source)).name: source.fingerprint()
        for source in find_sources(str(tmp_path), DataSettings(), Reading())
    }
    assert prints["a.txt"] == prints["b.txt"]
    different = [prints[name] for name in ("a.txt", "c.md", "d.txt", "a.txt.gz")]
    assert all(one != other for one, other in itertools.combinations(different, 2))


def test_an_empty_file_among_others_is_left_out_and_one_that_is_named_is_an_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "empty.txt").write_text("")
    reading = Reading()
    sources = find_sources(str(tmp_path), DataSettings(), reading)
    assert [str(source) for source in sources] == [str(tmp_path / "a.txt")]
    assert reading.files_left_out == [str(tmp_path / "empty.txt")]
    with pytest.raises(DataError, match="is empty"):
        find_sources(str(tmp_path / "empty.txt"), DataSettings(), Reading())


def test_every_piece_says_where_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["", "one", "two<|endoftext|>", "", "<|endoftext|>three", "", "four<|endoftext|>five", "six"]
    file = tmp_path / "a.txt"
    file.write_bytes("\r\n".join(lines).encode())
    for size in (1 << 20, 16, 3):
        read_in_blocks(monkeypatch, size)
        found = {}
        data = DataSettings()
        for text, _, place in read_placed(find_sources(str(file), data, Reading()), data, Reading()):
            for word in ("one", "two", "three", "four", "five", "six"):
                if (offset := text.find(word)) >= 0:
                    found[word] = place.of(text, offset)
        assert found == {
            word: f"{file}:{next(n for n, line in enumerate(lines, 1) if word in line)}"
            for word in found
        }
        assert size < 16 or len(found) == 6


def test_a_line_that_is_a_document_and_a_row_say_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n two\nthree")
    (tmp_path / "b.jsonl").write_text('{"text": "four\\nfive"}\n\n{"text": "six"}\n')
    data = DataSettings(text_unit="line")
    pieces = list(read_placed(find_sources(str(tmp_path), data, Reading()), data, Reading()))
    assert [(piece.text, piece.place.of(piece.text, len(piece.text))) for piece in pieces] == [
        ("one", f"{tmp_path}/a.txt:1"),
        (" two", f"{tmp_path}/a.txt:3"),
        ("three", f"{tmp_path}/a.txt:4"),
        ("four\nfive", f"{tmp_path}/b.jsonl:1"),
        ("six", f"{tmp_path}/b.jsonl:3"),
    ]
