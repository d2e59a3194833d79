from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gptcli.files import HASHED_BYTES, replace_file, sha256_of_file, write_text


def test_writing_replaces_the_whole_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_text(path, "a long first content\n")
    write_text(path, "日本\n")
    assert path.read_bytes() == "日本\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new, and then half a surrogate pair: \ud800")
    assert path.read_text() == "old"


def test_a_file_is_moved_over_another(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    replace_file(source, target)
    assert target.read_text() == "new"
    assert not source.exists()


def test_a_file_is_hashed_in_blocks_that_are_told(tmp_path: Path) -> None:
    content = b"0123456789" * (HASHED_BYTES // 5)  # Two blocks.
    path, blocks = tmp_path / "large", list[int]()
    path.write_bytes(content + b"!")
    assert sha256_of_file(path, blocks.append) == hashlib.sha256(content + b"!").hexdigest()
    assert sum(blocks) == len(content) + 1 and len(blocks) >= 2
    path.write_bytes(b"")
    assert sha256_of_file(path) == hashlib.sha256(b"").hexdigest()
