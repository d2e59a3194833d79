"""Token stores of known tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptcli.data.token_store import SplitWriter, TokenStore, token_dtype

END_OF_TEXT_ID = 0


def write_store(folder: Path, documents: Sequence[list[int]]) -> TokenStore:
    """Return a store of these documents, each followed by an end-of-text token, which is 0."""
    dtype = token_dtype(300)
    with SplitWriter(folder, "train", dtype, END_OF_TEXT_ID) as writer:
        for token_ids in documents:
            writer.write(token_ids, len(token_ids), ends_document=True)
    return TokenStore(folder, "train", writer.count, dtype, END_OF_TEXT_ID)


def numbered_documents(lengths: Sequence[int]) -> list[list[int]]:
    """Return documents of these lengths whose tokens look random, and are never end-of-text."""
    return [
        [1 + (document * 31 + position * position * 7) % 299 for position in range(length)]
        for document, length in enumerate(lengths)
    ]
