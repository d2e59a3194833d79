"""The report of a run, as text; tests/reports/test_rendering.py looks at it in a browser."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.schema import Settings
from gptcli.reports.run_page import run_page
from gptcli.training.run_record import RunRecord
from tests.reports.run_folders import (
    classification_lines,
    evaluation_line,
    pretraining_lines,
    step_line,
    write_run,
)

HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & {{ 7 * 7 }}"


class _Reader(HTMLParser):
    """Takes a page apart: text, scripts, and all attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "small":
            self.text += " "
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag in ("td", "th", "dt", "dd", "small"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def page_of(path: Path, **how: Any) -> str:
    return run_page(RunRecord(write_run(path, **how)))


def test_the_report_has_what_a_run_is_known_by(tmp_path: Path) -> None:
    text = " ".join(read(page_of(tmp_path / "run")).text.split())
    for expected in (
        "Finished: training.max_steps",
        "best bits per byte 1.2500 at step 100",
        "steps 100",
        "tokens trained on 100,000 2.00 times the training data",
        "time 0:01:05",
        "5,322,240 all trained",
        "After “Once upon a time”",
        "100 text of 100 75 text of 75",
        "reading: documents 3",
        "A processor; 2 threads",
        "cpu (as set)",
        "torch 2.13.0",
        "d" * 64,
        "gptcli pretrain --config 'my config.yaml'",
        f"gptcli runs rerun {tmp_path / 'run'}",
    ):
        assert expected in text, expected


def test_the_report_loads_nothing(tmp_path: Path) -> None:
    reader = read(page_of(tmp_path / "run"))
    names = {name for name, _ in reader.attributes}
    assert not names & {"src", "href", "srcset", "action", "data"}
    assert not set(reader.tags) & {"link", "iframe", "img", "object", "embed", "form"}
    policy = [value for name, value in reader.attributes if name == "content" and value]
    assert any(value.startswith("default-src 'none'") for value in policy)


def test_text_of_the_data_stays_text_wherever_it_stands(tmp_path: Path) -> None:
    lines = [
        *pretraining_lines(prompt=HOSTILE),
        *classification_lines({HOSTILE: [3, 1], "b": [0, 4]}),
        {"step": 100, "skipped": HOSTILE},
        {"step": 100, "samples": [{"prompt": "a", "text": HOSTILE}]},
    ]
    ledger = {HOSTILE: 1, "sources": [HOSTILE], "labels": {HOSTILE: [1, 2]}, "sample": HOSTILE}
    settings = Settings.model_validate({"data": {"source": HOSTILE}})
    harmless, hostile = tmp_path / "harmless", tmp_path / "hostile"
    before = read(page_of(harmless))
    page = page_of(
        hostile,
        lines=lines,
        ledger=ledger,
        settings=settings,
        command=["gptcli", "pretrain", HOSTILE],
        ended=f"finished: {HOSTILE}",
        versions={"torch": HOSTILE},
        task=HOSTILE,
    )
    after = read(page)
    assert len(after.scripts) == len(before.scripts) == 3
    assert after.scripts[1:] == before.scripts[1:]
    assert not {name for name, _ in after.attributes if name.startswith("on")}
    assert not set(after.tags) & {"img"}
    assert after.text.count("{{ 7 * 7 }}") >= 10
    json.loads(after.scripts[0])


def test_scores_from_a_confusion_matrix_have_their_interval(tmp_path: Path) -> None:
    # 90 of 100 are right; the normal approximation gives 0.9 -+ 1.96 * 0.03.
    lines = classification_lines({"cat": [45, 5], "dog": [5, 45]})
    text = " ".join(read(page_of(tmp_path / "run", lines=lines)).text.split())
    found = re.search(r"accuracy 90\.00% ([\d.]+)% to ([\d.]+)% macro-F1 0\.9000", text)
    assert found
    assert [float(end) for end in found.groups()] == pytest.approx([84.1, 95.9], abs=1.5)


def test_of_many_labels_the_most_frequent_confusions_are_shown(tmp_path: Path) -> None:
    labels = [f"label {n}" for n in range(50)]
    rows = {label: [10 if n == m else 0 for m in range(50)] for n, label in enumerate(labels)}
    rows["label 7"][3] = 6
    text = " ".join(read(page_of(tmp_path / "run", lines=classification_lines(rows))).text.split())
    assert "label 7 label 3 6" in text
    assert "The most frequent confusions of 50 labels" in text
    assert "The 40 worst of 50 labels" in text


@pytest.mark.parametrize(
    ("ended", "state", "goes_on"),
    [
        ("stopped: InterruptedRun", "Interrupted", True),
        ("stopped: Diverged", "Diverged", False),
        ("stopped: EnvironmentProblem", "Failed", True),
        ("running", "Killed", True),
    ],
)
def test_the_report_says_how_a_run_ended_and_how_it_goes_on(
    tmp_path: Path, ended: str, state: str, goes_on: bool
) -> None:
    run = tmp_path / "run"
    text = read(page_of(run, ended=ended, problem="The loss is nan.")).text
    assert f"{state}: The loss is nan." in text
    assert (f"gptcli pretrain --config {run}/config.yaml --resume" in text) == goes_on


def test_a_run_that_has_hardly_begun_has_a_report(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", lines=[], step=0, tokens=0, training_seconds=0, best_evaluation=None
    )
    (run / "metrics.jsonl").unlink()
    (run / "data.json").unlink()
    (run / "config.yaml").write_text("training: {max_steps: no}")
    text = read(run_page(RunRecord(run))).text
    assert "config.yaml cannot be read." in text
    assert "Curves" not in text


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"loss": 1}\n{"step": 100, "lo')
    assert "3 damaged lines of metrics.jsonl left out." in read(run_page(RunRecord(run))).text


@pytest.mark.parametrize(
    "details",
    [
        {"per_label": {"a": 1}, "confusion": [[1]]},
        {"per_label": [], "confusion": 3},
        {"per_label": {"a": {"f1": "x"}}, "confusion": [["x"]]},
        {"per_label": {"a": {}, "b": {}}, "confusion": [[1, 2], [3]]},
        {"answerable": {"f1": None, "questions": "x"}, "answer_threshold": "x"},
    ],
)
def test_details_of_another_form_are_no_obstacle(tmp_path: Path, details: dict[str, Any]) -> None:
    page_of(tmp_path / "run", lines=[evaluation_line(100, loss=1.0, **details)], ledger={"train": {}})


def test_the_page_of_a_long_run_stays_small_and_says_that_curves_are_thinned(tmp_path: Path) -> None:
    lines = [step_line(step, 1 + (step * 7919 % 1000) / 1000) for step in range(1, 100_001)]
    page = page_of(tmp_path / "run", lines=lines)
    assert len(page) < 1_000_000
    assert "Of long curves, the least and the most of 500 parts are drawn." in read(page).text


def test_scores_of_eval_in_the_folder_are_shown_with_their_intervals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    score = {"value": 0.75, "low": 0.7, "high": None, "definition": "share that is right"}
    copa = {"test": "copa", "about": "choices", "scores": {"acc": {**score, "high": 0.8}, "f": score}}
    (run / "eval-copa.json").write_text(json.dumps({"model_sha256": "a" * 64, "tests": [copa]}))
    (run / "eval-other.json").write_text("[]")
    text = " ".join(read(run_page(RunRecord(run))).text.split())
    assert "copa: choices" in text
    assert "acc 0.75 0.7 to 0.8 share that is right" in text
    assert "f 0.75 - share that is right" in text
    assert "From eval-copa.json; weights aaaaaaaaaaaa…" in text


def test_the_plot_library_is_the_published_one() -> None:
    # uPlot 1.6.32 as on the npm registry.
    file = resources.files("gptcli.reports").joinpath("uplot/uPlot.iife.min.js")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == (
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    )
