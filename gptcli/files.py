"""Writing so that a crash at any moment leaves either the old file or the new one, whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptcli.errors import EnvironmentProblem, GptcliError

# How the libraries that are written in Rust say it; their exceptions are no OSErrors.
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

HASHED_BYTES = 1 << 23
"""At a time."""
WORTH_A_BAR = 1 << 28
"""Hashing no more bytes than these takes a second at most."""


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn a failure to write, such as on a full disk, into an EnvironmentProblem that names `path`.

    The system seldom says which file a failed write was for. What it says of one elsewhere, passes.
    """
    try:
        yield
    except GptcliError:
        raise
    except Exception as error:
        found = _OS_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        file = error.filename if isinstance(error, OSError) else None
        if number is None or (file and not Path(os.fsdecode(file)).is_relative_to(path.parent)):
            raise
        raise EnvironmentProblem(
            f"{path} cannot be written: {os.strerror(number)}. Make room, or choose another folder."
        ) from error


def replace_file(source: Path, target: Path) -> None:
    """Move `source` over `target`, on the same disk, atomically and durably."""
    flush_to_disk(source)
    source.replace(target)
    flush_to_disk(target.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, atomically and durably.

    Raises EnvironmentProblem if the disk does not take it; `path` is as it was then.
    """
    partial = partial_path(path)
    with writing_to(path):
        try:
            partial.write_text(text, encoding="utf-8")
            replace_file(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """Return where a file or folder is made before it is moved to `path`."""
    return path.with_name(f".{path.name}.partial")


def remove_tree(path: Path) -> None:
    """Remove a folder, if there is one, with all that is in it; of a link, the link alone."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def sha256_of_file(path: Path, then: Callable[[int], None] = lambda count: None) -> str:
    """Return the hash in hexadecimal. Calls `then` with the bytes of each block that is done."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(HASHED_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            then(count)
    return digest.hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
