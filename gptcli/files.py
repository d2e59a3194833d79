"""Writing so that a crash at any moment leaves either the old file or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(source: Path, target: Path) -> None:
    """Move `source` over `target`, on the same disk, atomically and durably."""
    flush_to_disk(source)
    source.replace(target)
    flush_to_disk(target.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, atomically and durably."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    replace_file(partial, path)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
