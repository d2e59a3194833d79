"""The token store: the tokens of one split in a memory-mapped file, document boundaries beside it.

train.tokens      every token, uint16 or uint32, an end-of-text token after every document
train.documents   uint64, for every document the number of tokens up to and with its end
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from gptcli.data.ledger import SplitCount

_BOUNDARY = np.dtype("<u8")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class TokenStore:
    """Reads one split. The stream ends in end-of-text, so that it can also be read as a circle."""

    def __init__(
        self, folder: Path, split: str, count: SplitCount, dtype: np.dtype[Any], end_of_text_id: int
    ) -> None:
        self.count = count
        self.end_of_text_id = end_of_text_id
        self._tokens = np.memmap(folder / f"{split}.tokens", dtype=dtype, mode="r")
        self._document_ends = np.memmap(folder / f"{split}.documents", dtype=_BOUNDARY, mode="r")
        assert len(self._tokens) == count.tokens and len(self._document_ends) == count.documents

    @property
    def token_count(self) -> int:
        return self.count.tokens

    @property
    def document_ends(self) -> np.ndarray:
        """(documents,): the number of tokens up to and with the end of each document."""
        return self._document_ends

    def read_circular(self, begin: int, length: int) -> np.ndarray:
        """Return (length,) tokens, one or more, from `begin`, going on at the start after the end."""
        begin %= self.token_count
        parts = []
        while length:
            part = self._tokens[begin : begin + length]
            parts.append(part)
            length -= len(part)
            begin = 0
        return np.concatenate(parts)


class SplitWriter:
    """Writes one split, document by document."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], end_of_text_id: int) -> None:
        self.count = SplitCount()
        self._dtype = dtype
        self._end_of_text_id = end_of_text_id
        self._tokens = (folder / f"{split}.tokens").open("wb")
        self._documents = (folder / f"{split}.documents").open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tokens.close()
        self._documents.close()

    def write(self, token_ids: Sequence[int] | np.ndarray, text_bytes: int, ends_document: bool) -> None:
        """Add a piece of a document; text_bytes: the UTF-8 size of its text."""
        self._write_tokens(token_ids)
        if ends_document:
            self._write_tokens([self._end_of_text_id])
        self.count.bytes += text_bytes
        if ends_document:
            self.count.documents += 1
            self._documents.write(np.array(self.count.tokens, dtype=_BOUNDARY).tobytes())

    def _write_tokens(self, token_ids: Sequence[int] | np.ndarray) -> None:
        self._tokens.write(np.asarray(token_ids, dtype=self._dtype).tobytes())
        self.count.tokens += len(token_ids)
