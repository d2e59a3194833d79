"""What is written to a token store is what is read from it, as a stream and as a circle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptcli.data.token_store import SplitWriter, TokenStore, token_dtype
from tests.token_stores import write_store


@pytest.mark.parametrize(
    ("vocab_size", "bytes_a_token"), [(257, 2), (50257, 2), (65536, 2), (65537, 4), (1_000_000, 4)]
)
def test_the_highest_id_of_a_vocabulary_fits(
    tmp_path: Path, vocab_size: int, bytes_a_token: int
) -> None:
    dtype = token_dtype(vocab_size)
    with SplitWriter(tmp_path, "train", dtype, end_of_text_id=vocab_size - 1) as writer:
        writer.write([0, vocab_size - 2], 5, ends_document=True)
    assert (tmp_path / "train.tokens").stat().st_size == 3 * bytes_a_token
    store = TokenStore(tmp_path, "train", writer.count, dtype, vocab_size - 1)
    assert store.read_circular(0, 3).tolist() == [0, vocab_size - 2, vocab_size - 1]


def test_documents_are_written_in_pieces_with_end_of_text_behind_each(tmp_path: Path) -> None:
    dtype = token_dtype(300)
    with SplitWriter(tmp_path, "validation", dtype, end_of_text_id=0) as writer:
        writer.write([1, 2], 10, ends_document=False)
        writer.write([], 0, ends_document=False)
        writer.write([3], 4, ends_document=True)
        writer.write([4, 5], 7, ends_document=False)
        writer.write([], 1, ends_document=True)
    count = writer.count
    assert (count.documents, count.tokens, count.bytes) == (2, 7, 22)
    store = TokenStore(tmp_path, "validation", count, dtype, end_of_text_id=0)
    assert store.token_count == 7
    assert store.read_circular(0, 7).tolist() == [1, 2, 3, 0, 4, 5, 0]
    assert store.document_ends.tolist() == [4, 7]
    # Little-endian on every machine.
    assert (tmp_path / "validation.tokens").read_bytes()[:4] == b"\1\0\2\0"


@pytest.mark.parametrize("begin", [0, 3, 6, -1, -7, 7, 700])
@pytest.mark.parametrize("length", [1, 4, 7, 8, 30])
def test_reading_goes_on_at_the_start_after_the_end(tmp_path: Path, begin: int, length: int) -> None:
    store = write_store(tmp_path, [[1, 2, 3], [4, 5]])
    circle = [1, 2, 3, 0, 4, 5, 0]
    expected = [circle[(begin + step) % 7] for step in range(length)]
    found = store.read_circular(begin, length)
    assert found.tolist() == expected
    assert isinstance(found, np.ndarray)


def test_a_store_cannot_be_changed_by_reading_it(tmp_path: Path) -> None:
    store = write_store(tmp_path, [[1, 2, 3]])
    store.read_circular(0, 4)[:] = 9
    assert store.read_circular(0, 4).tolist() == [1, 2, 3, 0]
