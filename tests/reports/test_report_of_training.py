"""That every training leaves its report, however it ends, and that a report stops no training."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gptcli.config.loading import load_settings
from gptcli.errors import Diverged, InterruptedRun
from gptcli.pipelines.train import Event, run_training
from gptcli.training.loop import StepDone
from gptcli.training.run import Note
from gptcli.training.stopping import StopSignals
from tests.conftest import SENTENCES
from tests.pipelines.test_train import pretrain

TASKS = {
    "classification": '{{"text": "{text}", "label": "{label}"}}',
    "instruction": '{{"prompt": "{text}", "completion": "{label}"}}',
    "question-answering": '{{"question": "What sat?", "context": "{text}", "answers": ["{label}"]}}',
}


def report_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def test_a_pretraining_leaves_its_report(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run, "evaluation.sample_prompts=[The <b>small</b> cat]")
    page = report_of(run)
    assert "Finished" in page
    assert "After “The &lt;b&gt;small&lt;/b&gt; cat”" in page


@pytest.mark.parametrize("task", TASKS)
def test_every_fine_tuning_leaves_its_report(config_file: Path, tmp_path: Path, task: str) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [TASKS[task].format(text=text.strip(), label=text.split()[2]) for text in SENTENCES]
    rows.write_text("\n".join(lines))
    run = tmp_path / "run"
    settings = [f"task={task}", f"data.source={rows}", "model.context_length=96"]
    if task == "instruction":
        settings.append("evaluation.sample_prompts=['Who sat?']")
    pretrain(config_file, run, *settings)
    page = report_of(run)
    assert f"· {task} ·" in page
    assert ("What was taken for what" in page) == (task == "classification")
    assert ("After “Who sat?”" in page) == (task == "instruction")


def test_a_run_that_is_stopped_leaves_its_report(config_file: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, StepDone):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRun), StopSignals() as signals:
        run_training(load_settings(config_file), tmp_path / "run", notify=stop, signals=signals)
    page = report_of(tmp_path / "run")
    assert "Interrupted" in page
    assert "Stopped by SIGTERM after step 1; it is saved." in page


def test_a_run_that_diverges_leaves_its_report(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        pretrain(
            config_file,
            tmp_path / "run",
            "training.learning_rate=10",
            "training.warmup_steps=0",
            "training.max_grad_norm=0",
            "training.optimizer=muon",
            "training.weight_decay=10",
            "training.max_steps=2000",
        )
    assert "Diverged" in report_of(tmp_path / "run")


def test_a_report_that_cannot_be_written_is_a_warning(config_file: Path, tmp_path: Path) -> None:
    run, notes = tmp_path / "run", list[str]()

    def obstruct(event: Event) -> None:
        if isinstance(event, StepDone):
            (run / "report.html").mkdir(exist_ok=True)
        if isinstance(event, Note) and event.is_warning:
            notes.append(event.text)

    result = run_training(load_settings(config_file), run, notify=obstruct)
    assert result.ended == "finished: training.max_steps"
    (note,) = notes
    assert note.startswith(f"{run}/report.html is not written: ")
    assert note.endswith(f"`gptcli runs report {run}` tries again.")


def test_overwriting_a_run_removes_its_report(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run)
    seen: list[bool] = []

    def look(event: Event) -> None:
        if isinstance(event, StepDone):
            seen.append((run / "report.html").exists())

    run_training(load_settings(config_file), run, overwrite=True, notify=look)
    assert seen == [False] * 6
    assert "Finished" in report_of(run)
