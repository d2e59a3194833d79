"""metrics.jsonl: one JSON object a logged step, an evaluation, or its samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptcli.files import flush_to_disk, write_text, writing_to


class MetricsLog:
    """Appends lines; each is on its way to the disk when `append` returns."""

    def __init__(self, path: Path, then: Callable[[dict[str, Any]], None] = lambda entry: None) -> None:
        """then: gets each entry when it is written."""
        self._path = path
        self._then = then

    def append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, allow_nan=False) + "\n"
        with writing_to(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
        self._then(entry)

    def flush(self) -> None:
        """Wait until all lines would survive a power cut."""
        if self._path.exists():
            flush_to_disk(self._path)

    def drop_after(self, step: int, evaluated_step: int) -> None:
        """Forget what a resumed run will do again: later steps, later evaluations, a torn last line."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                belongs_to_evaluation = "split" in entry or "samples" in entry
                if entry["step"] > (evaluated_step if belongs_to_evaluation else step):
                    continue
            except (ValueError, KeyError, TypeError):
                continue
            kept.append(line + "\n")
        write_text(self._path, "".join(kept))
