"""Whatever the settings, a run stopped at any step and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.loading import load_settings
from gptcli.config.schema import Settings
from gptcli.models.layer import NativeBlock
from gptcli.pipelines.train import Event, run_training
from gptcli.tasks.table import build_job
from gptcli.training.device import choose_compute
from gptcli.training.loop import StepDone
from gptcli.training.run import Evaluated, Saved
from tests.conftest import SENTENCES, TEXT, skip_without_native_products

# More than two epochs of the first half of the text, with 20 sequences of 32 tokens.
STEPS = 7
SETTINGS = [
    *(f"training.max_steps={STEPS}", "training.batch_size=8", "training.save_steps=1"),
    *("model.dropout=0.1", "runtime.threads=1"),
]


class Stop(Exception):
    """Raised from `notify`, where it ends the run as a crash of the caller would."""


@dataclass
class Recorder:
    """What a run did at each step, and the order to stop it."""

    stop_at: int | None = None
    stop_after: type = StepDone
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        match event:
            case StepDone(step, loss, learning_rate, grad_norm):
                self.steps[step] = {"loss": loss, "lr": learning_rate, "grad_norm": grad_norm}
            case Evaluated(step, scores):
                self.steps.setdefault(step, {})["scores"] = scores
            case Saved(path):
                step = int(path.name.removeprefix("step-"))
                manifest = json.loads((path / "manifest.json").read_text())
                for name in ("model.safetensors", "optimizer.safetensors"):
                    self.steps[step][name] = manifest["files"][name]["sha256"]
        if isinstance(event, self.stop_after) and step == self.stop_at:
            raise Stop


# Any two of these settings meet in one of the first four; all three do with the slow ones.
PAIRS = [("adamw", 8, 2), ("adamw", 4, 100), ("muon", 8, 100), ("muon", 4, 2)]
OTHERS = [("adamw", 8, 100), ("adamw", 4, 2), ("muon", 8, 2), ("muon", 4, 100)]


@pytest.mark.parametrize(
    ("optimizer", "micro_batch_size", "eval_steps"),
    [*PAIRS, *(pytest.param(*settings, marks=pytest.mark.slow) for settings in OTHERS)],
)
@pytest.mark.parametrize("stop_after", [StepDone, pytest.param(Saved, marks=pytest.mark.slow)])
def test_a_run_stopped_at_any_step_and_resumed_repeats_every_later_step(
    config_file: Path,
    text_file: Path,
    tmp_path: Path,
    optimizer: str,
    micro_batch_size: int,
    eval_steps: int,
    stop_after: type,
) -> None:
    text_file.write_text(TEXT[: len(TEXT) // 2])
    settings = load_settings(
        config_file,
        [
            *SETTINGS,
            f"training.optimizer={optimizer}",
            f"training.micro_batch_size={micro_batch_size}",
            f"evaluation.eval_steps={eval_steps}",
        ],
    )
    check_every_stop(settings, tmp_path, stop_after)


def test_a_run_with_compiled_layers_stopped_at_any_step_and_resumed_repeats_every_later_step(
    config_file: Path, text_file: Path, tmp_path: Path
) -> None:
    skip_without_native_products()
    text_file.write_text(TEXT[: len(TEXT) // 2])
    # Heads of 32 numbers, and threads that share out the work as it comes.
    native = ["model.n_embd=64", "model.dropout=0", "runtime.precision=bf16", "runtime.threads=2"]
    settings = load_settings(config_file, [*SETTINGS, *native, "evaluation.eval_steps=2"])
    job = build_job(settings, choose_compute(settings.runtime, for_training=True), lambda event: None)
    assert [type(part) for part in job.model.modules()].count(NativeBlock) == settings.model.n_layer
    check_every_stop(settings, tmp_path, StepDone)


def check_every_stop(settings: Settings, path: Path, stop_after: type) -> None:
    """Run once without a stop, then stop and resume a run at each step; all must do the same."""
    whole = Recorder()
    result = run_training(settings, path / "whole", notify=whole)
    assert result.epochs > 2
    # A model that is not new is scored before the first step.
    assert sorted(whole.steps.keys() - {0}) == list(range(1, STEPS + 1))
    for stop_at in range(1, STEPS):
        run = path / "stopped"
        with pytest.raises(Stop):
            run_training(settings, run, notify=Recorder(stop_at, stop_after))
        resumed = Recorder()
        run_training(settings, run, resume=True, notify=resumed)
        # Stopped before the step was saved, it is done again; else it is not.
        first = stop_at if stop_after is StepDone else stop_at + 1
        # Stopped before anything was saved, it is also scored again at step 0, to the same scores.
        assert resumed.steps.pop(0, whole.steps.get(0)) == whole.steps.get(0)
        assert resumed.steps == {step: facts for step, facts in whole.steps.items() if step >= first}, (
            stop_at
        )
        shutil.rmtree(run)


ROWS: dict[str, list[dict[str, Any]]] = {
    "classification": [{"text": sentence, "label": sentence.split()[2]} for sentence in SENTENCES[::3]],
    "instruction": [
        {"prompt": " ".join(words[:3]), "completion": " ".join(words[3:])}
        for words in map(str.split, SENTENCES[::3])
    ],
    "question-answering": [
        {
            "question": f"Where sat the {sentence.split()[2]}?",
            "context": sentence,
            "answers": {"text": [sentence.split()[6].strip(",")], "answer_start": [0]},
        }
        for sentence in SENTENCES[::3]
    ],
}


@pytest.mark.parametrize("micro_batch_size", [pytest.param(8, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("task", ROWS)
def test_a_run_of_any_task_stopped_at_any_step_and_resumed_repeats_every_later_step(
    config_file: Path, tmp_path: Path, task: str, micro_batch_size: int
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    settings = load_settings(
        config_file,
        [
            *SETTINGS,
            f"task={task}",
            "model.context_length=128",
            f"data.source={rows}",
            "data.stride=4",
            f"training.micro_batch_size={micro_batch_size}",
            "training.label_smoothing=0.1",
            "evaluation.eval_steps=2",
        ],
    )
    check_every_stop(settings, tmp_path, StepDone)


@pytest.mark.parametrize(
    "training",
    [
        ["training.lora={rank: 4, dropout: 0.1}", "training.gradient_checkpointing=true"],
        ["training.freeze_layers=1", "training.optimizer=muon"],
        ["training.class_weights=balanced", "training.token_dropout=0.2", "training.prefix_loss=0.5"],
    ],
)
def test_a_fine_tuning_of_some_weights_stopped_at_any_step_and_resumed_repeats_every_later_step(
    config_file: Path, tmp_path: Path, model_folder: Path, training: list[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS["classification"]))
    start = ["task=classification", f"model={{name: {model_folder}, dropout: 0.1}}"]
    settings = load_settings(
        config_file,
        [*SETTINGS[:-2], *start, f"data.source={rows}", *training, "evaluation.eval_steps=2"],
    )
    check_every_stop(settings, tmp_path, StepDone)


def test_continuing_a_model_stopped_at_any_step_and_resumed_repeats_every_later_step(
    config_file: Path, text_file: Path, tmp_path: Path, model_folder: Path
) -> None:
    text_file.write_text(TEXT[: len(TEXT) // 2])
    settings = load_settings(
        config_file, [*SETTINGS, f"model.name={model_folder}", "evaluation.eval_steps=2"]
    )
    check_every_stop(settings, tmp_path, StepDone)
