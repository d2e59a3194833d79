"""How much there is to learn from: counted if it has been prepared before, else by file sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptcli.config.schema import DataSettings, Settings
from gptcli.data.builtin_text import DOCSTRINGS, PYTHON_DOCS
from gptcli.data.ledger import Reading
from gptcli.data.preparation import stored_ledger
from gptcli.data.sources import BuiltinSource, FileSource, Source, find_here
from gptcli.errors import DataError

# Of CPython 3.11 to 3.14, about; counting them takes seconds.
_BUILTIN_BYTES = {PYTHON_DOCS: 2_100_000, DOCSTRINGS: 770_000}
# Measured: tokenizers of 512, 1,024, ... 32,768 and 50,257 tokens, trained on 41 MB of novels and
# Wikipedia articles, on others of both. Verse has up to a quarter less. With the bytes alone, one.
LOG2_VOCABULARIES = (8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 15.617)
BYTES_PER_TOKEN = (1.0, 2.08, 2.59, 3.03, 3.45, 3.84, 4.15, 4.35, 4.43)
# Text in a .gz or .parquet file is about so many times as large.
_PACKED = 3
# Files up to this size in all are looked up in the token cache, for which they are read once.
_LOOKED_UP_BYTES = 200_000_000


@dataclass(frozen=True)
class TextSize:
    """The text of a training, in tokens of its tokenizer."""

    bytes: int | None
    """Of all files; None if they are not here."""
    train_tokens: int | None
    held_out_tokens: int | None
    is_counted: bool
    """Whether these are counts, from the token cache; else estimates."""


def bytes_per_token(vocab_size: int) -> float:
    """Return about how many bytes of English prose a token of a byte-level BPE stands for.

    Other languages have fewer under a tokenizer made for English.
    """
    return float(np.interp(math.log2(vocab_size), LOG2_VOCABULARIES, BYTES_PER_TOKEN))


def text_size(settings: Settings, vocab_size: int, given_bytes: int | None = None) -> TextSize:
    """Return how much text the settings name. given_bytes: takes the place of the files' size.

    Raises DataError for a path that is not there.
    """
    data = settings.data
    if given_bytes is not None:
        return _estimate(given_bytes, None, data, vocab_size)
    sources = _find(data.source, "data.source")
    held_out = _find(data.validation_source, "data.validation_source") if data.validation_source else []
    if sources is None or held_out is None:
        return TextSize(None, None, None, is_counted=False)
    sizes = [sum(map(_bytes_of, some)) for some in (sources, held_out)]
    if sum(sizes) <= _LOOKED_UP_BYTES and settings.task == "language-modelling":
        ledger = stored_ledger(settings, sources, held_out)
        if ledger is not None:
            train, validation = ledger.train, ledger.validation
            return TextSize(train.bytes + validation.bytes, train.tokens, validation.tokens, True)
    return _estimate(sizes[0], sizes[1] if held_out else None, data, vocab_size)


def bytes_of_source(source: str) -> int | None:
    """Return the size of the text that a path, a glob or builtin:... names; None if it is not here."""
    found = _find(source, "--data")
    return None if found is None else sum(map(_bytes_of, found))


def _estimate(size: int, held_out: int | None, data: DataSettings, vocab_size: int) -> TextSize:
    per_token = bytes_per_token(vocab_size)
    if held_out is None:
        held_out = round(size * data.validation_fraction)
        size -= held_out
    return TextSize(
        size + held_out, round(size / per_token), round(held_out / per_token), is_counted=False
    )


def _find(setting: str | list[str], name: str) -> list[Source] | None:
    """Return the sources, each file once; None if one of them is on the hub."""
    sources: dict[object, Source] = {}
    for item in [setting] if isinstance(setting, str) else setting:
        found = find_here(item, Reading(), name)
        if found is None:
            return None
        for source in found:
            key = source.path.resolve() if isinstance(source, FileSource) else source
            sources.setdefault(key, source)
    return list(sources.values())


def _bytes_of(source: Source) -> int:
    if isinstance(source, BuiltinSource):
        return _BUILTIN_BYTES[source.name]
    assert isinstance(source, FileSource)
    try:
        size = source.path.stat().st_size
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}.") from error
    is_packed = source.path.suffix.lower() == ".gz" or source.suffix == ".parquet"
    return size * _PACKED if is_packed else size
