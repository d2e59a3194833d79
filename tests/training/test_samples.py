"""Samples while training: what the model writes at each evaluation, without a trace in the training."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptcli.config.loading import load_settings
from gptcli.errors import ConfigError, InterruptedRun
from gptcli.pipelines.train import Event, run_training
from gptcli.training.loop import StepDone
from gptcli.training.run import Sampled
from gptcli.training.stopping import StopSignals
from tests.pipelines.test_train import (
    assert_same_weights,
    metrics_of,
    pretrain,
    untimed_metrics_of,
)

PROMPTS = "evaluation.sample_prompts=[The small cat, '']"
# What training draws at random would be disturbed by whoever else draws.
DROPOUT = "model.dropout=0.2"
SAMPLED = ("generation.temperature=1.0", "generation.max_new_tokens=8")


def samples_of(run: Path) -> dict[int, list[dict[str, Any]]]:
    return {entry["step"]: entry["samples"] for entry in metrics_of(run) if "samples" in entry}


def test_each_evaluation_writes_a_sample_a_prompt(config_file: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    pretrain(config_file, tmp_path / "run", PROMPTS, "generation.max_new_tokens=8", events=events)
    samples = samples_of(tmp_path / "run")
    assert list(samples) == [3, 6]
    assert [sample["prompt"] for sample in samples[3]] == ["The small cat", ""]
    found = [event for event in events if isinstance(event, Sampled)]
    assert [[vars(sample) for sample in event.samples] for event in found] == list(samples.values())


def test_a_greedy_sample_is_what_the_saved_model_writes(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = pretrain(config_file, run, PROMPTS, "generation.max_new_tokens=8")
    assert result.evaluation is not None
    assert result.evaluation["step"] == 6  # So model/ is that of the last samples.
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    inputs = tokenizer("The small cat", return_tensors="pt", add_special_tokens=False)
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert samples_of(run)[6][0]["text"] == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("how", [(), SAMPLED], ids=["greedy", "sampled"])
def test_training_is_the_same_with_and_without_samples(
    config_file: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    pretrain(config_file, tmp_path / "without", DROPOUT)
    pretrain(config_file, tmp_path / "with", DROPOUT, PROMPTS, *how)
    lines = [line for line in untimed_metrics_of(tmp_path / "with") if "samples" not in line]
    assert lines == untimed_metrics_of(tmp_path / "without")
    last = Path("checkpoints/step-00000006")
    assert_same_weights(tmp_path / "with" / last, tmp_path / "without" / last)


@pytest.mark.parametrize("held_out", [(), ("data.validation_fraction=0",)], ids=["held out", "none"])
def test_a_run_stopped_after_every_step_writes_the_same_samples(
    config_file: Path, tmp_path: Path, held_out: tuple[str, ...]
) -> None:
    settings = [DROPOUT, PROMPTS, *SAMPLED, *held_out, "evaluation.eval_steps=2"]
    pretrain(config_file, tmp_path / "whole", *settings)

    def stop(event: Event) -> None:
        if isinstance(event, StepDone):
            os.kill(os.getpid(), signal.SIGTERM)

    parts = tmp_path / "parts"
    for step in range(1, 7):
        with pytest.raises(InterruptedRun), StopSignals() as signals:
            run_training(
                load_settings(config_file, settings),
                parts,
                resume=step > 1,
                notify=stop,
                signals=signals,
            )
    pretrain(config_file, parts, *settings, resume=True)
    assert list(samples_of(parts)) == [2, 4, 6]
    assert untimed_metrics_of(parts) == untimed_metrics_of(tmp_path / "whole")


def test_a_prompt_without_room_is_refused_before_training(config_file: Path, tmp_path: Path) -> None:
    long = "cat " * 40
    with pytest.raises(ConfigError, match=r"sample_prompts: .* the model's context is 32, the new tok"):
        pretrain(config_file, tmp_path / "run", f"evaluation.sample_prompts=[{long}]")
    limited = ("generation.max_length=2", "evaluation.sample_prompts=[The small cat]")
    with pytest.raises(ConfigError, match=r"generation\.max_length is 2"):
        pretrain(config_file, tmp_path / "run", *limited)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("task", ["classification", "question-answering"])
def test_a_task_that_writes_no_text_refuses_prompts_before_it_reads_data(
    config_file: Path, tmp_path: Path, task: str
) -> None:
    missing = "data.source=missing.csv"
    with pytest.raises(ConfigError, match=rf"a model of task {task} writes no text") as caught:
        pretrain(config_file, tmp_path / "run", f"task={task}", PROMPTS, missing)
    assert caught.value.exit_code == 2
