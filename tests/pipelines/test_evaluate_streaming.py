"""Memory of `gptcli eval`: it does not hold what it has scored."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.loading import load_settings
from gptcli.config.schema import ModelSettings
from gptcli.data import rows
from gptcli.evaluation import bootstrap
from gptcli.models.architecture import model_config, new_model
from gptcli.models.loading import set_labels
from gptcli.models.saving import save_model
from gptcli.pipelines.evaluate import Evaluator, Request

pytestmark = pytest.mark.slow

LONG = "The small cat sat on the mat, and it was happy. " * 20

Save = Callable[[list[str] | None], Path]


@pytest.fixture
def save(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Save:
    """Save a tiny model, with labels a classifier."""

    def save(labels: list[str] | None) -> Path:
        settings = ModelSettings(n_layer=1, n_head=1, n_embd=8, context_length=64)
        config = model_config(settings, tokenizer)
        kind = GPT2LMHeadModel if labels is None else GPT2ForSequenceClassification
        if labels is not None:
            set_labels(config, labels)
        folder = tmp_path / "model"
        save_model(new_model(config, 0, kind), tokenizer, folder)
        return folder

    return save


@pytest.fixture(autouse=True)
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What resampling and reading take, whatever the data is: what grows would not show beside it.
    monkeypatch.setattr(bootstrap, "_BLOCK", 2**14)
    monkeypatch.setattr(rows, "READ_BYTES", 2**14)
    tracemalloc.start()
    yield
    tracemalloc.stop()


def growth(model: Path, few: Request, many: Request) -> int:
    """Return how many bytes the peak of memory is higher with many items than with few.

    Tensors are not seen; they are as large as what goes through the model together.
    """
    peaks = []
    for request in (few, few, many):  # The first time, modules and caches are filled.
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        list(Evaluator(str(model), load_settings(None, ["data.text_unit=line"], {}), request).run())
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    return peaks[2] - peaks[1]


def write(file: Path, header: str, line: Callable[[int], str], count: int) -> str:
    with file.open("w", encoding="utf-8") as out:
        out.write(header)
        out.writelines(line(number) for number in range(count))
    return str(file)


def test_choices_are_forgotten_when_they_are_scored(save: Save, tmp_path: Path) -> None:
    def line(number: int) -> str:
        return f'{{"query": "{number} {LONG}", "choices": ["sat", "ran"], "gold": {number % 2}}}\n'

    few, many = (
        Request(write(tmp_path / f"{count}.jsonl", "", line, count), ("multiple_choice",))
        for count in (2_000, 12_000)
    )
    # Of each item: a few numbers. Its text alone has 960 bytes.
    assert growth(save(None), few, many) < 10_000 * 300


def test_labelled_texts_are_forgotten_when_they_are_scored(save: Save, tmp_path: Path) -> None:
    few, many = (
        Request(
            write(
                tmp_path / f"{count}.csv",
                "text,label\n",
                lambda number: f'"{number} {LONG}",{"abc"[number % 3]}\n',
                count,
            )
        )
        for count in (2_000, 12_000)
    )
    assert growth(save(["a", "b", "c"]), few, many) < 10_000 * 600


def test_documents_are_forgotten_when_they_are_scored(save: Save, tmp_path: Path) -> None:
    few, many = (
        Request(write(tmp_path / f"{count}.txt", "", lambda number: f"{number} {LONG}\n", count))
        for count in (400, 1_000)
    )
    assert growth(save(None), few, many) < 600 * 300
