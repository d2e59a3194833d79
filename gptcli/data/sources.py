"""From `data.source` to sources: the embedded text, files, a hub data set.

`Source.fingerprint` names its content, so that a token store is never reused for other text. What is in
a source is read by `rows` (tables, line by line or row by row) and `documents` (text).
"""

from __future__ import annotations

import codecs
import glob
import gzip
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from gptcli.config.schema import DataSettings
from gptcli.data.builtin_text import DOCSTRINGS, PYTHON_DOCS
from gptcli.data.ledger import Reading
from gptcli.errors import ConfigError, DataError, EnvironmentProblem
from gptcli.files import sha256_of_file
from gptcli.hub import first_line, is_network_failure, use_cache_if_unreachable

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".csv", ".tsv", ".json", ".parquet")
# A .json among other files is more often their description than text: it is read if it is named itself.
SUFFIXES_IN_FOLDERS = tuple(s for s in TEXT_SUFFIXES + ROW_SUFFIXES if s != ".json")
MAX_LISTED = 100


@dataclass(frozen=True)
class BuiltinSource:
    """Text embedded in CPython."""

    name: str

    def __str__(self) -> str:
        return f"builtin:{self.name}"

    @property
    def hashed_bytes(self) -> int:
        return 0

    def fingerprint(self, then: Callable[[int], None] = lambda count: None) -> str:
        # The standard library changes with every Python release.
        return f"builtin:{self.name}:{sys.version}"


@dataclass(frozen=True)
class FileSource:
    """One local file."""

    path: Path

    def __str__(self) -> str:
        # A name that is not UTF-8 is shown with escapes, so that it can be printed and written.
        return str(self.path).encode(errors="backslashreplace").decode()

    @property
    def hashed_bytes(self) -> int:
        """How much `fingerprint` reads."""
        return self.path.stat().st_size if self.path.exists() else 0

    def fingerprint(self, then: Callable[[int], None] = lambda count: None) -> str:
        """Return what names its content. Calls `then` with the bytes of each block that is read."""
        try:
            return f"file:{self.suffix}:{sha256_of_file(self.path, then)}"
        except OSError as error:
            raise DataError(f"{self} cannot be read: {error.strerror}.") from error

    @property
    def suffix(self) -> str:
        """The suffix that says how to read it, .gz aside, in lower case."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        if suffixes and suffixes[-1] == ".gz":
            suffixes.pop()
        return suffixes[-1] if suffixes else ""

    def open_binary(self) -> BinaryIO:
        """Open it for reading, unpacked."""
        if self.path.suffix.lower() == ".gz":
            return cast(BinaryIO, gzip.open(self.path, "rb"))
        return self.path.open("rb")


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face hub, loaded by `datasets` into its own cache."""

    name: str
    rows: Any
    """A `datasets.Dataset`."""

    def __str__(self) -> str:
        return self.name

    @property
    def hashed_bytes(self) -> int:
        return 0

    def fingerprint(self, then: Callable[[int], None] = lambda count: None) -> str:
        # `datasets` derives this from the files' hashes and the loading options.
        return f"hub:{self.name}:{self.rows._fingerprint}"


Source = BuiltinSource | FileSource | HubSource


def find_sources(
    setting: str | list[str], data: DataSettings, reading: Reading, *, name: str = "data.source"
) -> list[Source]:
    """Return what `setting` stands for: a folder's or glob's files sorted by path, each file once.

    Counts files that a folder holds but that are not read in `reading`. Raises DataError if there is
    nothing to read, and EnvironmentProblem if the hub cannot be reached.
    """
    check_encoding(data.encoding)
    sources: dict[object, Source] = {}
    for item in [setting] if isinstance(setting, str) else setting:
        for source in _find_source(item, data, reading, name):
            # One file may be given by several paths.
            key = source.path.resolve() if isinstance(source, FileSource) else str(source)
            sources.setdefault(key, source)
    for source in sources.values():
        if isinstance(source, FileSource):
            _check_file(source)
    return list(sources.values())


def _find_source(item: str, data: DataSettings, reading: Reading, name: str) -> list[Source]:
    found = find_here(item, reading, name)
    return [_load_from_hub(item, data)] if found is None else found


def find_here(item: str, reading: Reading, name: str) -> list[Source] | None:
    """Return what `item` stands for on this machine; None for what can only be a name on the hub."""
    if item.startswith("builtin:"):
        text = item.removeprefix("builtin:")
        if text not in (PYTHON_DOCS, DOCSTRINGS):
            raise ConfigError(
                f"{name} is {item}; the embedded text is builtin:{PYTHON_DOCS}, and for classification "
                f"builtin:{DOCSTRINGS}."
            )
        return [BuiltinSource(text)]
    try:
        path = Path(item).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~name of a user who does not exist.
        problem = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name}: {item:.60} cannot be looked up: {problem}.") from error
    if is_folder:
        return _files_of_folder(path, reading, name)
    if is_there:
        if FileSource(path).suffix not in TEXT_SUFFIXES + ROW_SUFFIXES:
            raise DataError(
                f"{item}: files of type {path.suffix or '(no suffix)'} are not read. "
                f"Use {', '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}, or one of these with .gz."
            )
        return [FileSource(path)]
    if glob.has_magic(item):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if match.is_file()]
        readable = _readable_files(files, reading)
        if not readable:
            raise DataError(f"{name}: no text file matches {item}.")
        return readable
    if _looks_like_a_path(item):
        raise DataError(f"{item}: no such file or folder ({name}, seen from {Path.cwd()}).")
    return None


def _looks_like_a_path(item: str) -> bool:
    """Return whether what is not there must be a path, rather than a data set on the hub."""
    return (
        item.startswith((".", "/", "~"))
        or item.count("/") > 1
        or item.endswith("/")
        or Path(item).suffix.lower() in (*TEXT_SUFFIXES, *ROW_SUFFIXES, ".gz", ".zip")
    )


def missing_paths(setting: str | list[str]) -> list[str]:
    """Return what `setting` names that is a path, or a glob, with nothing there. Nothing is read."""
    missing = []
    for item in [setting] if isinstance(setting, str) else setting:
        if item.startswith("builtin:"):
            continue
        try:
            path = Path(item).expanduser()
            is_there = path.exists() or next(glob.iglob(str(path), recursive=True), None) is not None
        except (OSError, RuntimeError, ValueError):
            is_there = False
        if not is_there and (_looks_like_a_path(item) or glob.has_magic(item)):
            missing.append(item)
    return missing


def _files_of_folder(folder: Path, reading: Reading, name: str) -> list[Source]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        # A link to a folder may lead round in a circle: it is not followed, but listed as left out.
        links = [entry for entry in folders if Path(parent, entry).is_symlink()]
        files += [Path(parent, entry) for entry in (*names, *links) if not entry.startswith(".")]
    readable = _readable_files(sorted(files), reading)
    if not readable:
        suffixes = ", ".join(SUFFIXES_IN_FOLDERS)
        hint = " Name its .json files themselves." if any(f.suffix == ".json" for f in files) else ""
        raise DataError(
            f"{folder} holds no text ({name}): no file in it ends in {suffixes} or .gz.{hint}"
        )
    return readable


def _readable_files(files: list[Path], reading: Reading) -> list[Source]:
    readable: list[Source] = []
    for file in files:
        source = FileSource(file)
        is_text = source.suffix in SUFFIXES_IN_FOLDERS and not file.is_dir()
        # Only a file that is named itself must hold text; among others, an empty one is nothing lost.
        if is_text and not (file.is_file() and file.stat().st_size == 0):
            readable.append(source)
        elif len(reading.files_left_out) < MAX_LISTED:
            reading.files_left_out.append(str(source))
    return readable


def check_encoding(encoding: str) -> None:
    """Raise ConfigError if Python cannot read text in this encoding."""
    try:
        "".encode(encoding)  # Refuses codecs that are no text encodings, such as base64.
        codecs.getincrementaldecoder(encoding)
    except (LookupError, UnicodeError, ValueError):
        raise ConfigError(
            f"data.encoding is {encoding!r}; Python knows no such text encoding. "
            "Try utf-8, utf-16, latin-1, cp1252, shift_jis or gb18030."
        ) from None


def _check_file(source: FileSource) -> None:
    try:
        if source.path.stat().st_size == 0:
            raise DataError(f"{source} is empty (0 bytes).")
        with source.path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}.") from None


def _load_from_hub(name: str, data: DataSettings) -> HubSource:
    use_cache_if_unreachable()
    import datasets  # Now, because it reads at import whether it may ask the hub.

    try:
        rows = datasets.load_dataset(name, data.hub_subset, split=data.hub_split)
    except Exception as error:  # `datasets` raises whatever its builders and parsers raise.
        if is_network_failure(error):
            raise EnvironmentProblem(
                f"{name} is no file or folder here, and the hub cannot be reached to look for a data "
                "set of that name. Check the path or the network."
            ) from error
        raise DataError(
            f"{name} is no file or folder here, and as a hub data set: {first_line(error)}"
        ) from error
    return HubSource(name, rows)
