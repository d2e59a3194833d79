"""From settings to a tokenizer and the token stores of both splits.

The result lies in a cache, in a folder named by the fingerprint of all that decides it: the sources'
content, the tokenizer, the settings. Building it streams through memory, whatever the size of the text:

1. all text is read once: bad input is found before anything expensive, and the counts decide the split;
2. a tokenizer is trained on the training text, if the settings ask for one;
3. the text is encoded in parallel batches and written to disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptcli.config.schema import Settings
from gptcli.data.batches import permuted
from gptcli.data.documents import PlacedPiece, read_placed, text_bytes
from gptcli.data.ledger import Ledger, Reading, SplitCount
from gptcli.data.progress import Notify, PreparationProgress
from gptcli.data.sources import Source, find_sources
from gptcli.data.token_store import SplitWriter, TokenStore, token_dtype
from gptcli.data.tokenizing import (
    TextEncoder,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
)
from gptcli.errors import DataError, EnvironmentProblem
from gptcli.files import WORTH_A_BAR, writing_to

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of every fingerprint: raised when the same input would be stored in another way.
STORE_FORMAT = 2
TRAIN, VALIDATION = "train", "validation"
BATCH_CHARACTERS = 4_000_000
STAGING_PREFIX = "building-"


@dataclass(frozen=True)
class PreparedText:
    """All that training needs of the data."""

    train: TokenStore
    validation: TokenStore | None
    tokenizer: PreTrainedTokenizerFast
    ledger: Ledger
    data_fingerprint: str
    tokenizer_fingerprint: str
    was_cached: bool


def prepare_text(
    settings: Settings,
    notify: Notify = lambda progress: None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> PreparedText:
    """Return the token stores and tokenizer that `settings` ask for, from the cache if they are there.

    tokenizer: takes the place of the one in the settings. Raises DataError, ModelError or
    EnvironmentProblem for input that cannot be used.
    """
    data = settings.data
    reading = Reading()
    sources = find_sources(data.source, data, reading)
    validation_sources = (
        find_sources(data.validation_source, data, reading, name="data.validation_source")
        if data.validation_source
        else []
    )
    fingerprint = _data_fingerprint(settings, sources, validation_sources, notify)
    if tokenizer is None and settings.tokenizer.name:
        tokenizer = load_tokenizer(settings.tokenizer.name)
    given = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
    cache = cache_folder(data.cache_dir)
    folder = cache / _store_name(fingerprint, settings, given)
    was_cached = _is_whole(folder)
    if not was_cached:
        with _staging_in(cache) as staging, writing_to(cache):
            _build(staging, settings, sources, validation_sources, tokenizer, reading, notify)
            _publish(staging, folder)
    if tokenizer is None:
        tokenizer = load_tokenizer(str(folder / "tokenizer"))
    prepared = _open(
        folder, tokenizer, fingerprint, given or tokenizer_fingerprint(tokenizer), was_cached
    )
    # The same text may have been stored when it lay elsewhere, among other files.
    prepared.ledger.sources = [str(source) for source in (*sources, *validation_sources)]
    prepared.ledger.reading.files_left_out = reading.files_left_out
    return prepared


def stored_ledger(
    settings: Settings, sources: list[Source], validation_sources: list[Source]
) -> Ledger | None:
    """Return the ledger of the token store that these settings lead to, if it is in the cache.

    Only for a tokenizer that is trained on the text. The sources are read, for their fingerprints.
    """
    if settings.model.name is not None or settings.tokenizer.train is None:
        return None
    fingerprint = _data_fingerprint(settings, sources, validation_sources)
    folder = cache_folder(settings.data.cache_dir) / _store_name(fingerprint, settings, None)
    if not _is_whole(folder):
        return None
    return Ledger.from_dict(json.loads((folder / "store.json").read_text())["ledger"])


def read_split(settings: Settings, reading: Reading) -> Iterator[tuple[str, PlacedPiece]]:
    """Yield the text once more, as (split, piece), the training text first or mixed with the other.

    reading: of the first time, which decides the split: `PreparedText.ledger.reading`.
    """
    data = settings.data
    sources = find_sources(data.source, data, Reading())
    split = _decide_split(settings, reading, has_own_validation=bool(data.validation_source))
    yield from split.assign(read_placed(sources, data, Reading()))
    if data.validation_source:
        others = find_sources(data.validation_source, data, Reading())
        for piece in read_placed(others, data, Reading()):
            yield VALIDATION, piece


def cache_folder(setting: str | None) -> Path:
    """Return the folder of the token cache; `setting` is data.cache_dir."""
    if setting:
        return Path(setting).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gptcli" / "tokens"


@contextmanager
def _staging_in(cache: Path) -> Iterator[Path]:
    """Make a folder to build in, locked by this process; those of killed processes are removed."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=cache))
        lock = os.open(staging, os.O_RDONLY)
    except OSError as error:
        raise EnvironmentProblem(
            f"{cache}: the token cache cannot be written: {error.strerror}. Set data.cache_dir."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield staging
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(cache: Path) -> None:
    for folder in cache.glob(f"{STAGING_PREFIX}*"):
        with suppress(OSError):  # Another process may be at it.
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                # One that was just made may not be locked yet.
                if time.time() - folder.stat().st_mtime > 60:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            finally:
                os.close(lock)


def _data_fingerprint(
    settings: Settings,
    sources: list[Source],
    validation_sources: list[Source],
    notify: Notify = lambda progress: None,
) -> str:
    """Return a hash of everything that decides the text of both splits."""
    both = (*sources, *validation_sources)
    done, total = 0, sum(source.hashed_bytes for source in both)

    def hashed(count: int) -> None:
        nonlocal done
        done += count
        if total > WORTH_A_BAR:
            notify(PreparationProgress("hashing", done, total))

    contents = {str(source): source.fingerprint(hashed) for source in both}
    held_out = {contents[str(source)]: source for source in validation_sources}
    for source in sources:
        if twin := held_out.get(contents[str(source)]):
            raise DataError(
                f"{source} is training text, but data.validation_source holds the same text ({twin}): "
                "a score on it would say nothing. Take it out of one of the two."
            )
    facts = {
        "format": STORE_FORMAT,
        "sources": [contents[str(source)] for source in sources],
        "validation_sources": [contents[str(source)] for source in validation_sources],
        # Where the text lies, and where the cache does, decide nothing.
        "rules": settings.data.model_dump(exclude={"source", "validation_source", "cache_dir"}),
        "seed": settings.runtime.seed,
    }
    return _hash_of(facts)


def _store_name(data: str, settings: Settings, tokenizer: str | None) -> str:
    """Return the name of the cache folder for this text in the tokens of this tokenizer.

    data, tokenizer: fingerprints; None for a tokenizer that is trained on the text.
    """
    training = settings.tokenizer.train if tokenizer is None else None
    facts = {
        "data": data,
        "tokenizer": tokenizer,
        "tokenizer_training": training.model_dump() if training else None,
        "tokenizers": version("tokenizers"),
    }
    return _hash_of(facts)[:32]


def _hash_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _file_sizes(folder: Path) -> dict[str, int]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / "store.json").read_text())["file_sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _publish(staging: Path, folder: Path) -> None:
    if folder.exists() and not _is_whole(folder):
        shutil.rmtree(folder)
    try:
        staging.rename(folder)
    except OSError:
        # Another process has built the same store in the meantime; it serves as well.
        if not _is_whole(folder):
            raise


def _open(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    data_fingerprint: str,
    tokenizer_fingerprint: str,
    was_cached: bool,
) -> PreparedText:
    facts = json.loads((folder / "store.json").read_text())
    ledger = Ledger.from_dict(facts["ledger"])
    dtype = np.dtype(facts["dtype"])

    def store(split: str, count: SplitCount) -> TokenStore:
        return TokenStore(folder, split, count, dtype, tokenizer.eos_token_id)

    return PreparedText(
        train=store(TRAIN, ledger.train),
        validation=store(VALIDATION, ledger.validation) if ledger.validation.tokens else None,
        tokenizer=tokenizer,
        ledger=ledger,
        data_fingerprint=data_fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        was_cached=was_cached,
    )


def _build(
    folder: Path,
    settings: Settings,
    sources: list[Source],
    validation_sources: list[Source],
    tokenizer: PreTrainedTokenizerFast | None,
    reading: Reading,
    notify: Notify,
) -> None:
    data = settings.data
    all_bytes = text_bytes((*sources, *validation_sources), data)
    for some_sources in filter(None, (sources, validation_sources)):
        documents_before = reading.documents
        for piece in read_placed(some_sources, data, reading):
            del piece
            notify(PreparationProgress("reading", reading.bytes, all_bytes))
        if reading.documents == documents_before:
            raise DataError(f"{_listed(some_sources)}: there is no text, only white space.")
    split = _decide_split(settings, reading, has_own_validation=bool(validation_sources))

    def pieces() -> Iterator[tuple[str, PlacedPiece]]:
        return split.assign(read_placed(sources, data, Reading()))

    if tokenizer is None:
        assert settings.tokenizer.train is not None
        texts = (piece.text for name, piece in pieces() if name == TRAIN)
        tokenizer = train_tokenizer(texts, settings.tokenizer.train, notify)
    # Ids can lie above the count of tokens where a vocabulary has gaps.
    dtype = token_dtype(max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1))

    def own_validation() -> Iterator[tuple[str, PlacedPiece]]:
        for piece in read_placed(validation_sources, data, Reading()):
            yield VALIDATION, piece

    encoder = TextEncoder(tokenizer)
    end_of_text_id = tokenizer.eos_token_id
    with (
        SplitWriter(folder, TRAIN, dtype, end_of_text_id) as train,
        SplitWriter(folder, VALIDATION, dtype, end_of_text_id) as validation,
    ):
        writers = {TRAIN: train, VALIDATION: validation}
        done = 0
        for stream in (pieces(), own_validation()):
            for batch in _batches_of_pieces(stream):
                all_ids = encoder.encode_batch([piece.text for _, piece in batch])
                for (name, piece), token_ids in zip(batch, all_ids, strict=True):
                    piece_bytes = len(piece.text.encode())
                    writers[name].write(token_ids, piece_bytes, piece.ends_document)
                    done += piece_bytes
                notify(PreparationProgress("tokenizing", done, reading.bytes))
    assert train.count.bytes + validation.count.bytes == reading.bytes, "text was lost"
    if train.count.tokens == 0:
        raise DataError(f"{_listed(sources)}: all of its text is held out; lower validation_fraction.")
    ledger = Ledger(
        sources=[str(source) for source in (*sources, *validation_sources)],
        split_by=split.rule,
        reading=reading,
        train=train.count,
        validation=validation.count,
        documents_cut_by_the_split=split.documents_cut,
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    facts = {"dtype": dtype.str, "ledger": ledger.as_dict(), "file_sizes": _file_sizes(folder)}
    (folder / "store.json").write_text(json.dumps(facts, indent=2))


def _listed(sources: Iterable[Source]) -> str:
    names = [str(source) for source in sources]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _batches_of_pieces(
    pieces: Iterable[tuple[str, PlacedPiece]],
) -> Iterator[list[tuple[str, PlacedPiece]]]:
    batch: list[tuple[str, PlacedPiece]] = []
    characters = 0
    for name, piece in pieces:
        batch.append((name, piece))
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= 10_000:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@dataclass
class _Split:
    """Says which split each piece of text belongs to."""

    rule: str
    documents: int = 0
    held_out_documents: int = 0
    seed: int = 0
    cut_at_byte: int | None = None
    documents_cut: int = 0

    def assign(self, pieces: Iterable[PlacedPiece]) -> Iterator[tuple[str, PlacedPiece]]:
        """Yield (split, piece); with cut_at_byte, one piece may be yielded in two parts."""
        if self.cut_at_byte is not None:
            yield from self._cut(pieces, self.cut_at_byte)
            return
        document = 0
        for piece in pieces:
            is_held_out = self.held_out_documents > 0 and (
                permuted(document, self.documents, self.seed) < self.held_out_documents
            )
            yield VALIDATION if is_held_out else TRAIN, piece
            document += piece.ends_document

    def _cut(self, pieces: Iterable[PlacedPiece], cut: int) -> Iterator[tuple[str, PlacedPiece]]:
        begin = 0
        is_open = False  # Whether the training split holds the start of the current document.
        for piece in pieces:
            end = begin + len(piece.text.encode())
            if end <= cut:
                yield TRAIN, piece
                is_open = not piece.ends_document
            elif begin < cut or is_open:
                # Half a character is no text: the cut moves to the character's start.
                head = piece.text.encode()[: max(0, cut - begin)].decode(errors="ignore")
                # For the model, the text ends at the cut.
                rest = piece.text[len(head) :]
                yield TRAIN, PlacedPiece(head, True, piece.place)
                yield VALIDATION, PlacedPiece(rest, piece.ends_document, piece.place.after(head))
                self.documents_cut = 1
                is_open = False
            else:
                yield VALIDATION, piece
            begin = end


def _decide_split(settings: Settings, reading: Reading, *, has_own_validation: bool) -> _Split:
    data = settings.data
    if has_own_validation:
        return _Split("validation_source")
    if data.validation_fraction == 0:
        return _Split("none")
    held_out = round(data.validation_fraction * reading.documents)
    by_document = data.split_by == "document" or (
        data.split_by == "auto" and 0 < held_out < reading.documents
    )
    if not by_document:
        return _Split("position", cut_at_byte=int(reading.bytes * (1 - data.validation_fraction)))
    if not 0 < held_out < reading.documents:
        raise DataError(
            f"data.split_by is document, but {data.validation_fraction:g} of {reading.documents} "
            f"documents is {held_out}. Change validation_fraction, or use split_by: position."
        )
    return _Split(
        "document",
        documents=reading.documents,
        held_out_documents=held_out,
        seed=settings.runtime.seed,
    )
