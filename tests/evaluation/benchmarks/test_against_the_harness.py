"""Our scores beside those of EleutherAI's lm-evaluation-harness, row by row; the other side of it was
written down by benchmarks/harness_reference.py."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptcli.config.schema import DataSettings, RuntimeSettings
from gptcli.data.ledger import Reading
from gptcli.data.sources import FileSource
from gptcli.evaluation.benchmarks.benchmark import Benchmark
from gptcli.evaluation.benchmarks.table import BENCHMARKS
from gptcli.evaluation.choices import ChoiceCounts, ItemResult, measure_choices, score_items
from gptcli.evaluation.continuations import ContinuationScorer
from gptcli.models.loading import load_model
from gptcli.training.device import choose_compute
from tests.conftest import REPOSITORY, SHARED_DATA

HERE = Path(__file__).parent.parent
EXPECTED: dict[str, Any] = json.loads((HERE / "harness_expected.json").read_text(encoding="utf-8"))
# {task: its rows in the hub's shape}; the other rows are files in the shapes that people pass on.
ROWS: dict[str, Any] = json.loads((HERE / "harness_rows.json").read_text(encoding="utf-8"))
FILES = {
    "lambada_openai": "lambada-first-100.jsonl",
    "hellaswag": "hellaswag-first-100.jsonl",
    "arc_easy": "arc_easy.jsonl",
    "copa": "copa.jsonl",
}
SMALL = [(part, task) for part in ("small", "harness_rows") for task in EXPECTED[part]["items"]]
LARGE = [("124m", task) for task in EXPECTED["124m"]["items"]]

Scored = tuple[Benchmark, list[ItemResult]]
COMPUTE = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=False)


def new_scorer(size: str, folder: Path) -> ContinuationScorer:
    if not SHARED_DATA.is_dir():
        pytest.skip("GPT-2's tokenizer (../shared/data) is not here")
    models = runpy.run_path(str(REPOSITORY / "benchmarks" / "harness_model.py"))
    models["save_model"](size, SHARED_DATA, folder)
    return ContinuationScorer(load_model(str(folder), COMPUTE.device, torch.float32), COMPUTE)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> ContinuationScorer:
    return new_scorer("small", tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> ContinuationScorer:
    return new_scorer("124m", tmp_path_factory.mktemp("124m"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, ContinuationScorer], Scored]:
    """Score the rows of a task, once."""
    known: dict[tuple[str, str], Scored] = {}

    def score(part: str, task: str, scorer: ContinuationScorer) -> Scored:
        if (part, task) not in known:
            benchmark = benchmark_of(task)
            file = rows_of(part, task, tmp_path_factory.mktemp("rows"))
            items = benchmark.read([FileSource(file)], DataSettings(), Reading())
            some = islice(items, len(EXPECTED[part]["items"][task]))
            known[part, task] = (benchmark, list(score_items(scorer, some, ChoiceCounts())))
        return known[part, task]

    return score


def benchmark_of(task: str) -> Benchmark:
    (name,) = (name for name in BENCHMARKS if task.startswith(name))
    return BENCHMARKS[name]


def rows_of(part: str, task: str, folder: Path) -> Path:
    if part != "harness_rows":
        name = FILES.get(task, f"blimp/{task.removeprefix('blimp_')}.jsonl")
        return SHARED_DATA / "benchmarks" / name
    file = folder / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS[task]]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def assert_rows_are_those_of_the_harness(part: str, task: str, found: Scored) -> None:
    benchmark, results = found
    expected = EXPECTED[part]["items"][task]
    assert len(results) == len(expected)
    # Columns: the item itself, acc, acc_norm.
    columns = measure_choices(benchmark, results).items
    for result, row, measured in zip(results, expected, columns, strict=True):
        assert result.log_probabilities.tolist() == pytest.approx(row["log_likelihoods"], abs=1e-3)
        is_greedy = row.get("is_greedy", [False] * len(result.likelihoods))
        assert [likelihood.is_greedy for likelihood in result.likelihoods] == is_greedy
        assert measured[1] == row.get("pct_stereotype", row.get("acc"))
        if "acc_norm" in row:
            assert measured[2] == row["acc_norm"]


@pytest.mark.parametrize(("part", "task"), SMALL)
def test_each_row_scores_as_with_the_harness(
    part: str,
    task: str,
    small: ContinuationScorer,
    scored: Callable[[str, str, ContinuationScorer], Scored],
) -> None:
    assert_rows_are_those_of_the_harness(part, task, scored(part, task, small))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "task"), LARGE)
def test_each_row_scores_as_with_the_harness_at_gpt2_size(
    part: str,
    task: str,
    large: ContinuationScorer,
    scored: Callable[[str, str, ContinuationScorer], Scored],
) -> None:
    assert_rows_are_those_of_the_harness(part, task, scored(part, task, large))


@pytest.mark.parametrize(("part", "task"), SMALL)
def test_all_rows_together_score_as_with_the_harness(
    part: str,
    task: str,
    small: ContinuationScorer,
    scored: Callable[[str, str, ContinuationScorer], Scored],
) -> None:
    benchmark, results = scored(part, task, small)
    measured = measure_choices(benchmark, results)
    sums = measured.items.sum(0, keepdims=True)
    found = {metric.name: metric.of_sums(sums)[0] for metric in measured.metrics}
    expected = dict(EXPECTED[part]["metrics"][task])
    if "pct_stereotype" in expected:
        logs = np.array([result.log_probabilities for result in results])
        gap = np.abs(logs[:, 0] - logs[:, 1]).mean()
        assert gap == pytest.approx(expected.pop("likelihood_diff"), abs=1e-3)
        expected = {"stereotyped": expected["pct_stereotype"]}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)
