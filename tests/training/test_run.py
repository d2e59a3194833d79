from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from gptcli.config.loading import load_settings
from gptcli.errors import ConfigError, InterruptedRun
from gptcli.pipelines.train import Event, run_training
from gptcli.training.loop import StepDone
from gptcli.training.run import Note, Saved, Started
from gptcli.training.stopping import StopSignals
from tests.pipelines.test_train import (
    assert_same_weights,
    metrics_of,
    pretrain,
    read_json,
    untimed_metrics_of,
)

# A rate at which the held-out loss rises from the first evaluations on.
RISING = ("training.learning_rate=0.3", "training.min_learning_rate_ratio=1", "training.warmup_steps=0")


@pytest.mark.parametrize(
    ("limit", "low", "high"),
    [
        ("max_minutes", "0.000001", "1000"),
        ("max_tokens", "100", "1000000"),
        ("target_loss", "100", "0.001"),
        ("patience", "1", "100"),
    ],
)
def test_a_run_that_a_limit_has_ended_goes_on_with_a_higher_one(
    config_file: Path, tmp_path: Path, limit: str, low: str, high: str
) -> None:
    run = tmp_path / "run"
    settings = ["training.max_steps=12", "evaluation.eval_steps=1", *RISING]
    ended = pretrain(config_file, run, *settings, f"training.{limit}={low}")
    assert ended.ended == read_json(run / "run.json")["ended"] == f"finished: training.{limit}"
    assert ended.step < 12

    events: list[Event] = []
    result = pretrain(
        config_file, run, *settings, f"training.{limit}={high}", resume=True, events=events
    )
    assert [event.step for event in events if isinstance(event, Started)] == [ended.step]
    assert result.ended == read_json(run / "run.json")["ended"] == "finished: training.max_steps"
    assert [entry["step"] for entry in metrics_of(run) if "lr" in entry] == list(range(1, 13))
    assert AutoModelForCausalLM.from_pretrained(run / "model").config.n_layer == 2


def test_a_run_stopped_after_every_step_counts_to_the_same_patience(
    config_file: Path, tmp_path: Path
) -> None:
    settings = ["evaluation.eval_steps=2", "training.patience=2", "training.max_steps=40", *RISING]
    whole = pretrain(config_file, tmp_path / "whole", *settings)
    assert whole.ended == "finished: training.patience"

    def stop(event: Event) -> None:
        if isinstance(event, StepDone):
            os.kill(os.getpid(), signal.SIGTERM)

    parts = tmp_path / "parts"
    for step in range(1, whole.step + 1):
        loaded = load_settings(config_file, settings)
        what = f"SIGTERM after step {step}; it is saved"
        with pytest.raises(InterruptedRun, match=what) as caught, StopSignals() as signals:
            run_training(loaded, parts, resume=step > 1, notify=stop, signals=signals)
        assert caught.value.exit_code == 75
    result = pretrain(config_file, parts, *settings, resume=True)
    assert (result.ended, result.step) == (whole.ended, whole.step)
    assert result.evaluation == whole.evaluation
    assert untimed_metrics_of(parts) == untimed_metrics_of(tmp_path / "whole")
    assert_same_weights(parts / "model", tmp_path / "whole" / "model")


def test_settings_tampered_with_in_a_checkpoint_are_noticed(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run)
    state = run / "checkpoints" / "step-00000006" / "state.json"
    content = json.loads(state.read_text())
    assert content["origin"]["settings"]["runtime"]["seed"] == 42
    content["origin"]["settings"]["runtime"]["seed"] = 43
    state.write_text(json.dumps(content, indent=2))
    events: list[Event] = []
    # With the seed that the checkpoint now claims, its batches would be others.
    with pytest.raises(ConfigError, match=r"step-00000003 was trained with runtime\.seed 42"):
        pretrain(config_file, run, "runtime.seed=43", resume=True, events=events)
    (warning,) = [event.text for event in events if isinstance(event, Note) and event.is_warning]
    assert "step-00000006 is passed over: state.json is not what was saved" in warning


def test_how_much_fitted_in_memory_is_kept_unless_the_setting_changes(
    config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    size = "training.batch_size=8"
    pretrain(config_file, run, size, "training.max_steps=2", "training.micro_batch_size=4")
    # As if memory had run out in the last step: the checkpoint says so, whole and consistent.
    checkpoint = run / "checkpoints" / "step-00000002"
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["progress"]["micro_batch_size"] == 4
    state["progress"]["micro_batch_size"] = 2
    rewrite_state(checkpoint, state)
    for steps, setting, expected in ((3, 4, 2), (4, 4, 2), (5, 8, 8), (6, 8, 8)):
        settings = [size, f"training.max_steps={steps}", f"training.micro_batch_size={setting}"]
        pretrain(config_file, run, *settings, resume=True)
        assert read_json(run / "run.json")["micro_batch_size"] == expected


def test_a_setting_that_came_after_a_checkpoint_had_its_default_in_it(
    config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run, "training.max_steps=2")
    checkpoint = run / "checkpoints" / "step-00000002"
    state = json.loads((checkpoint / "state.json").read_text())
    del state["origin"]["settings"]["training"]["label_smoothing"]
    rewrite_state(checkpoint, state)
    with pytest.raises(ConfigError, match=r"with training\.label_smoothing 0\.0; it is now 0\.1"):
        pretrain(config_file, run, "training.label_smoothing=0.1", resume=True)
    assert pretrain(config_file, run, resume=True).step == 6


def rewrite_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """Replace state.json, and what the manifest says of it."""
    file, manifest = checkpoint / "state.json", checkpoint / "manifest.json"
    file.write_text(json.dumps(state, indent=2))
    facts = json.loads(manifest.read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    facts["files"]["state.json"] = {"bytes": file.stat().st_size, "sha256": digest}
    settings = json.dumps(state["origin"]["settings"], sort_keys=True).encode()
    facts["fingerprints"]["settings"] = hashlib.sha256(settings).hexdigest()
    manifest.write_text(json.dumps(facts, indent=2))


def test_time_that_a_last_evaluation_and_save_take_counts(config_file: Path, tmp_path: Path) -> None:
    seconds = 0.5

    def dawdle(event: Event) -> None:
        if isinstance(event, Saved):
            time.sleep(seconds)

    run_training(load_settings(config_file, ["training.max_steps=1"]), tmp_path / "run", notify=dawdle)
    facts = read_json(tmp_path / "run" / "run.json")
    assert facts["elapsed_seconds"] - facts["training_seconds"] >= seconds
