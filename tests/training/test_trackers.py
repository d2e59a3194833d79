"""Trackers get what metrics.jsonl gets, and cannot end a training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.loading import load_settings
from gptcli.config.schema import LoggingSettings, Settings, TrackerName
from gptcli.errors import EnvironmentProblem
from gptcli.pipelines.train import Event, run_training
from gptcli.training.run_folder import RunFolder
from gptcli.training.trackers import TrackedRun, Trackers, load_trackers

STEPS = [1, 2, 3, 4, 5, 6]
STEP_NAMES = {"tokens", "loss", "lr", "grad_norm", "tokens_per_second"}
SCORE_NAMES = {"validation/loss", "validation/perplexity", "validation/bits_per_byte"}


class Recorder:
    """A tracker that keeps what it gets, and raises in the call of this name."""

    name: TrackerName = "wandb"

    def __init__(self, fails_in: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._fails_in = fails_in

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self._fails_in:
            raise ConnectionError("the line is cut")

    def begin(self, run: TrackedRun) -> None:
        self._note("begin")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._note("log", step, values)

    def show_samples(self, step: int, samples: list[dict[str, str]]) -> None:
        self._note("show_samples", step, samples)

    def flush(self) -> None:
        self._note("flush")

    def end(self, *, is_finished: bool) -> None:
        self._note("end", is_finished)


def tracked_run(folder: Path, step: int = 0) -> TrackedRun:
    return TrackedRun(RunFolder(folder), "12ab34cd", is_known=step > 0, step=step, settings=Settings())


def train(
    config: Path,
    run: Path,
    trackers: str,
    *assignments: str,
    resume: bool = False,
    overwrite: bool = False,
) -> list[Event]:
    events: list[Event] = []
    settings = load_settings(
        config,
        [f"logging.trackers={trackers}", "evaluation.sample_prompts=[The small]", *assignments],
    )
    run_training(settings, run, resume=resume, overwrite=overwrite, notify=events.append)
    return events


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def forget_all_after_step_3(run: Path) -> None:
    """Leave the run as a kill after step 6, before its checkpoint, would have."""
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "ended": "running"}))


def test_steps_scores_and_samples_have_the_names_of_metrics_jsonl() -> None:
    recorder = Recorder()
    trackers = Trackers([recorder], warn=pytest.fail)
    trackers.log({"step": 1, "tokens": 8, "loss": 2.5})
    scores = {"loss": 2.0, "macro_f1": 0.5, "per_label": {"cat": {"f1": 1.0}}, "confusion": [[1]]}
    trackers.log({"step": 1, **scores, "tokens": 8, "split": "validation"})
    trackers.log({"step": 1, "samples": [{"prompt": "A", "text": "b"}]})
    trackers.log({"step": 2, "skipped": "The loss is not finite."})
    assert recorder.calls == [
        ("log", 1, {"tokens": 8, "loss": 2.5}),
        ("log", 1, {"validation/loss": 2.0, "validation/macro_f1": 0.5}),
        ("show_samples", 1, [{"prompt": "A", "text": "b"}]),
    ]


@pytest.mark.parametrize("call", ["log", "show_samples", "flush", "end"])
def test_a_tracker_that_fails_is_left_behind_with_one_warning(tmp_path: Path, call: str) -> None:
    good, bad = Recorder(), Recorder(fails_in=call)
    warnings: list[str] = []
    trackers = Trackers([bad, good], warnings.append)
    trackers.begin(tracked_run(tmp_path))
    for step in (1, 2):
        trackers.log({"step": step, "loss": 2.5})
        trackers.log({"step": step, "samples": [{"prompt": "A", "text": "b"}]})
        trackers.flush()
    trackers.end(is_finished=True)
    assert warnings == [
        "wandb has failed, and training goes on without it: the line is cut. metrics.jsonl has all."
    ]
    assert [name for name, *_ in bad.calls].count(call) == 1
    assert bad.calls[-1][0] == call
    assert len(good.calls) == 8


def test_a_tracker_that_cannot_begin_stops_a_new_run_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"wandb cannot begin: the line is cut\. Mend it, or"):
        Trackers([Recorder(fails_in="begin")], pytest.fail).begin(tracked_run(tmp_path))
    warnings: list[str] = []
    Trackers([Recorder(fails_in="begin")], warnings.append).begin(tracked_run(tmp_path, step=3))
    assert len(warnings) == 1


def test_what_a_tracker_prints_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    class Talker(Recorder):
        def log(self, step: int, values: dict[str, float]) -> None:
            print("Look at your run")

    Trackers([Talker()], warn=pytest.fail).log({"step": 1, "loss": 2.5})
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "Look at your run\n")


@pytest.mark.parametrize(
    ("tracker", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_missing_library_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, tmp_path: Path, tracker: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's way to say that there is none.
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(EnvironmentProblem) as problem:
        train(config_file, tmp_path / "run", tracker)
    assert str(problem.value) == (
        f'logging.trackers: {tracker} needs its package: pip install "gptcli[{tracker}]".'
    )
    assert not (tmp_path / "run").exists()


def test_no_library_is_loaded_that_is_not_asked_for() -> None:
    assert load_trackers(LoggingSettings()) == []


def test_tensorboard_has_every_line_once_also_after_a_kill(config_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train(config_file, run, "tensorboard")
    tracking_id = json.loads((run / "run.json").read_text())["tracking_id"]
    forget_all_after_step_3(run)
    train(config_file, run, "tensorboard", resume=True)
    assert json.loads((run / "run.json").read_text())["tracking_id"] == tracking_id
    assert len(list((run / "tensorboard").iterdir())) == 2  # A file a session.

    seen = EventAccumulator(str(run / "tensorboard"))
    seen.Reload()
    assert set(seen.Tags()["scalars"]) == STEP_NAMES | SCORE_NAMES
    lines = lines_of(run)
    for prefix, kept in (
        ("", [line for line in lines if "lr" in line]),
        ("validation/", [line for line in lines if "split" in line]),
    ):
        for name in {"loss"} if prefix else STEP_NAMES:
            events = seen.Scalars(prefix + name)
            assert [event.step for event in events] == [line["step"] for line in kept]
            assert [event.value for event in events] == pytest.approx([line[name] for line in kept])
    texts = seen.Tensors("samples/1/text_summary")
    # Of what a resumed run makes again, TensorBoard drops numbers alone.
    assert [event.step for event in texts] == [3, 6, 6]
    [sample] = next(line for line in reversed(lines) if "samples" in line)["samples"]
    shown = texts[-1].tensor_proto.string_val[0].decode()
    assert [line.removeprefix("    ") for line in shown.split("\n\n---\n\n")[1].split("\n")] == sample[
        "text"
    ].split("\n")
    assert "n_layer: 2" in seen.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_run_that_is_replaced_is_another_one_for_its_trackers(
    config_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    ids, files = set(), set()
    for _ in range(2):
        train(config_file, run, "tensorboard", overwrite=True)
        ids.add(json.loads((run / "run.json").read_text())["tracking_id"])
        [file] = (run / "tensorboard").iterdir()
        files.add(file.name)
    assert len(ids) == len(files) == 2


def test_a_run_without_trackers_keeps_how_they_know_it(config_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    train(config_file, run, "[]", "training.max_steps=3")
    assert "tracking_id" not in json.loads((run / "run.json").read_text())
    ids = []
    for steps, tracker in ((4, "tensorboard"), (5, "[]"), (6, "tensorboard")):
        train(config_file, run, tracker, f"training.max_steps={steps}", resume=True)
        ids.append(json.loads((run / "run.json").read_text())["tracking_id"])
    assert len(set(ids)) == 1
