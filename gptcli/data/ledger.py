"""The ledger: what was read, dropped and cut on the way from the files to the tokens (`data.json`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass
class Reading:
    """Counts kept while documents are read from their sources."""

    files: int = 0
    rows: int = 0
    """Rows of CSV, JSONL, Parquet and hub data sets."""
    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of the documents."""
    empty_documents_dropped: int = 0
    undecodable_bytes_replaced: int = 0
    lone_surrogates_replaced: int = 0
    """Halves of surrogate pairs, which JSON can write (\\ud83d) but which are no characters."""
    byte_order_marks_removed: int = 0
    carriage_returns_removed: int = 0
    """CRLF line ends that became LF."""
    end_of_text_markers: int = 0
    """Literal <|endoftext|> in the text, each taken as the end of a document."""
    files_left_out: list[str] = field(default_factory=list)
    """What a folder or glob holds and is not read: other types, empty files, links to folders (the
    first 100)."""


@dataclass
class SplitCount:
    """One split of the token store."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    """End-of-text tokens included, one a document."""


@dataclass
class Ledger:
    """What became of all that was read. Every byte of a document is in one of the splits."""

    sources: list[str]
    split_by: str
    reading: Reading
    train: SplitCount
    validation: SplitCount
    documents_cut_by_the_split: int = 0

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Self:
        parts = {
            "reading": Reading(**facts["reading"]),
            "train": SplitCount(**facts["train"]),
            "validation": SplitCount(**facts["validation"]),
        }
        return cls(**{**facts, **parts})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
