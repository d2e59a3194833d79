"""How far an evaluation is, of how much, is known from its start."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gptcli.config.loading import load_settings
from gptcli.pipelines.evaluate import Evaluator, Request
from tests.conftest import TEXT

Event = tuple[str, int, int | None, str]
DRAWING = ("drawing intervals", 0, None, "draws")
"""Which ends no test, and whose end is not known."""
ITEM = {"query": "The cat sat, therefore", "choices": ["it was happy.", "it ran."], "gold": 0}


def progress_of(model: Path, request: Request, *assignments: str) -> list[Event]:
    seen: list[Event] = []
    settings = load_settings(None, ["runtime.device=cpu", *assignments], environment={})
    list(Evaluator(str(model), settings, request, lambda *event: seen.append(event)).run())
    return seen


@pytest.mark.parametrize(("limit", "total"), [(None, len(TEXT)), (5, None)])
def test_text_is_counted_in_bytes(
    model_folder: Path, text_file: Path, limit: int | None, total: int | None
) -> None:
    request = Request(data=str(text_file), limit=limit)
    seen = progress_of(model_folder, request, "data.text_unit=line", "evaluation.stride=32")
    *seen, last = seen
    assert last == DRAWING
    assert {event[2:] for event in seen} == {(total, "bytes")}
    done = [event[1] for event in seen]
    assert done == sorted(done) and done[-1] < len(TEXT)


def test_text_is_not_read_to_know_how_much_it_is(model_folder: Path, text_file: Path) -> None:
    settings = load_settings(None, ["runtime.device=cpu", "data.text_unit=line"], environment={})
    evaluator = Evaluator(str(model_folder), settings, Request(data=str(text_file)))
    list(evaluator.run())
    # The first document twice: whether there is one is seen before the model is loaded.
    assert evaluator.data.reading.documents == TEXT.count("\n") + 1


@pytest.mark.parametrize("name", ["text.jsonl", "text.txt.gz"])
def test_of_what_does_not_tell_by_its_size_only_what_is_done_is_counted(
    name: str, model_folder: Path, tmp_path: Path
) -> None:
    content = TEXT if name.endswith(".gz") else json.dumps({"text": TEXT})
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    *seen, last = progress_of(model_folder, Request(data=str(tmp_path / name)))
    assert last == DRAWING and {event[2:] for event in seen} == {(None, "bytes")}


def test_items_of_a_benchmark_are_counted(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copa.jsonl").write_text(f"{json.dumps(ITEM)}\n" * 3)
    request = Request(data=str(tmp_path / "copa.jsonl"), benchmarks=("copa",), limit=2)
    seen = progress_of(model_folder, request)
    assert seen[-2:] == [("copa", 2, 2, "items"), DRAWING]
    assert {event[2] for event in seen[:-1]} == {2}
