"""How far an evaluation is, of how much, is known from its start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.config.loading import load_settings
from gptcli.pipelines.evaluate import Evaluator, Request
from tests.conftest import SENTENCES, TEXT

Event = tuple[str, int, int | None, str]
DRAWING = ("drawing intervals", 0, None, "draws")
"""Which ends no test, and whose end is not known."""
ITEM = {"query": "The cat sat, therefore", "choices": ["it was happy.", "it ran."], "gold": 0}


def progress_of(model: Path, request: Request, *assignments: str) -> list[Event]:
    seen: list[Event] = []
    settings = load_settings(None, ["runtime.device=cpu", *assignments], environment={})
    list(Evaluator(str(model), settings, request, lambda *event: seen.append(event)).run())
    return seen


@pytest.mark.parametrize(("limit", "text"), [(None, TEXT), (5, "".join(SENTENCES[:5]))])
def test_text_is_counted_in_bytes(
    model_folder: Path, text_file: Path, limit: int | None, text: str
) -> None:
    request = Request(data=str(text_file), limit=limit)
    seen = progress_of(model_folder, request, "data.text_unit=line", "evaluation.stride=32")
    # A line is a document without its line end.
    *seen, last = seen
    assert last == DRAWING
    assert {event[2:] for event in seen} == {(len(text) - text.count("\n"), "bytes")}
    done = [event[1] for event in seen]
    assert done == sorted(done) and done[-1] < len(text)


def test_items_of_a_benchmark_are_counted(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copa.jsonl").write_text(f"{json.dumps(ITEM)}\n" * 3)
    request = Request(data=str(tmp_path / "copa.jsonl"), benchmarks=("copa",), limit=2)
    seen = progress_of(model_folder, request)
    assert seen[-2:] == [("copa", 2, 2, "items"), DRAWING]
    assert {event[2] for event in seen[:-1]} == {2}
