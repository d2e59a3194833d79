"""Trackers get what metrics.jsonl gets, and cannot end a training.

Weights & Biases and trackio are tested where they are installed (`pip install "gptcli[wandb,trackio]"`):
with all that they need, they are too much for the extra `test`.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.loading import load_settings
from gptcli.config.schema import LoggingSettings, Settings, TrackerName
from gptcli.errors import EnvironmentProblem
from gptcli.pipelines.train import Event, run_training
from gptcli.training.run_folder import RunFolder
from gptcli.training.trackers import TrackedRun, Trackers, load_trackers
from tests.conftest import command, environment

STEPS = [1, 2, 3, 4, 5, 6]
STEP_NAMES = {"tokens", "loss", "lr", "grad_norm", "tokens_per_second"}
TIMED = {"tokens_per_second"}
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


def train_in_a_process(config: Path, run: Path, tracker: str, **variables: str) -> None:
    """Train as a person does, or go on, with a tracker that reads its variables when it is loaded."""
    settings = (f"logging.trackers={tracker}", "evaluation.sample_prompts=[The small]")
    options = [word for setting in settings for word in ("--set", setting)]
    if run.exists():
        options.append("--resume")
    done = subprocess.run(
        command("pretrain", "--config", config, "--output-dir", run, *options),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "Warning" not in done.stderr


def expected_rows(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Return what a tracker has of a run that went to its end, was set back to step 3 and went on.

    (step, {name: value}) of each line of metrics.jsonl that has numbers, its later half twice: what was
    tracked stays where steps are done again. Speed is left out, as no two steps have the same.
    """
    rows = []
    for line in lines_of(run):
        if "lr" in line:
            rows.append((line["step"], {name: line[name] for name in STEP_NAMES - TIMED}))
        elif "split" in line:
            names = {name.removeprefix("validation/") for name in SCORE_NAMES}
            rows.append((line["step"], {f"validation/{name}": line[name] for name in names}))
    first = [row for row in rows if row[0] <= 3]
    second = [row for row in rows if row[0] > 3]
    assert len(first) == len(second) == 4  # Three steps and an evaluation.
    return first + 2 * second


def test_wandb_has_every_line_in_one_run_also_after_a_kill(config_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    folders = {
        name: str(tmp_path / name) for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    }
    for is_again in (False, True):
        train_in_a_process(config_file, run, "wandb", WANDB_MODE="offline", **folders)
        if not is_again:
            forget_all_after_step_3(run)
    tracking_id = json.loads((run / "run.json").read_text())["tracking_id"]
    rows, samples = [], []
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        records = wandb_records(file)
        [begun] = [record.run for record in records if record.HasField("run")]
        assert (begun.run_id, begun.project, begun.display_name) == (tracking_id, "gptcli", "run")
        config = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert config["model"]["n_layer"] == 2
        for record in records:
            items = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            if "samples._type" in items or "samples" in items:
                samples.append(items)
            elif "step" in items:
                step = items.pop("step")
                rows.append((step, {k: v for k, v in items.items() if k[0] != "_" and k not in TIMED}))
    assert rows == expected_rows(run)
    assert len(samples) == 3


def test_trackio_has_every_line_in_one_run_also_after_a_kill(config_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    run, home = tmp_path / "run", tmp_path / "trackio"
    for is_again in (False, True):
        train_in_a_process(config_file, run, "trackio", TRACKIO_DIR=str(home))
        if not is_again:
            forget_all_after_step_3(run)
    tracking_id = json.loads((run / "run.json").read_text())["tracking_id"]
    with closing(sqlite3.connect(home / "gptcli.db")) as database:
        [(name, config)] = database.execute("SELECT run_name, config FROM configs").fetchall()
        logged = database.execute("SELECT DISTINCT run_id FROM metrics").fetchall()
        lines = database.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    assert len(logged) == 1
    assert name == f"run-{tracking_id}"
    assert json.loads(config)["model"]["n_layer"] == 2
    entries = [(step, json.loads(metrics)) for step, metrics in lines]
    rows = [
        (step, {name: value for name, value in values.items() if name not in TIMED})
        for step, values in entries
        if "samples" not in values
    ]
    assert rows == expected_rows(run)
    samples = [(step, values["samples"]) for step, values in entries if "samples" in values]
    assert [step for step, _ in samples] == [3, 6, 6]


def wandb_records(file: Path) -> list[Any]:
    """Return what wandb has written, in order: a log as LevelDB writes it, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = file.read_bytes()
    assert content[:4] == b":W&B"
    records, parts, place = [], b"", 7
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:  # No room for a head: what is left of a block is zeros.
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # Whole, or the last part.
            records.append(Record.FromString(parts))
            parts = b""
    assert parts == b""
    return records


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
