from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.training.metrics_log import MetricsLog


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def log(path: Path) -> MetricsLog:
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 1 / step})
    return log


def test_each_entry_is_a_json_object_on_a_line_of_its_own(log: MetricsLog, path: Path) -> None:
    log.append({"step": 3, "loss": 0.5, "split": "validation"})
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 1 / 3},
        {"step": 3, "loss": 0.5, "split": "validation"},
    ]


def test_steps_that_will_be_done_again_are_forgotten(log: MetricsLog, path: Path) -> None:
    log.drop_after(2, 2)
    assert steps_in(path) == [1, 2]
    log.append({"step": 3})
    assert steps_in(path) == [1, 2, 3]


def test_an_evaluation_and_its_samples_are_forgotten_together(log: MetricsLog, path: Path) -> None:
    for step in (2, 3):
        log.append({"step": step, "loss": 0.5, "split": "validation"})
        log.append({"step": step, "samples": []})
    log.drop_after(3, 2)
    assert steps_in(path) == [1, 2, 3, 2, 2]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step"', "12", "\x00\x00", "[]", '{"loss": 1}'])
def test_a_torn_last_line_is_forgotten(log: MetricsLog, path: Path, torn: str) -> None:
    with path.open("a") as file:
        file.write(torn)
    log.drop_after(3, 3)
    assert steps_in(path) == [1, 2, 3]
    assert path.read_text().endswith("}\n")


def test_a_log_that_is_not_there_has_nothing_to_forget(path: Path) -> None:
    MetricsLog(path).drop_after(0, 0)
    assert not path.exists()


def test_a_value_that_json_lacks_is_not_written(log: MetricsLog, path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        log.append({"step": 4, "loss": float("nan")})
    assert steps_in(path) == [1, 2, 3]
