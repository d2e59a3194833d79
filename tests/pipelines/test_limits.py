"""Each limit ends a run with a model that opens, and says which one it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from gptcli.errors import ConfigError
from gptcli.pipelines.train import Event
from gptcli.training.checkpoint import list_checkpoints, step_of
from gptcli.training.run import Note
from tests.pipelines.test_train import content_of, metrics_of, pretrain, read_json

# A rate at which the held-out loss rises from the first evaluation on.
RISING = (
    "training.optimizer=adamw",
    "training.learning_rate=0.3",
    "training.min_learning_rate_ratio=1",
    "training.warmup_steps=0",
)


@pytest.mark.parametrize(
    ("settings", "limit", "step"),
    [
        (["training.max_tokens=400"], "max_tokens", 4),  # 128 a step, but for an epoch's last.
        (["training.max_minutes=0.000001"], "max_minutes", 1),
        (["training.target_loss=100"], "target_loss", 3),
        (["training.patience=1", "evaluation.eval_steps=1", *RISING], "patience", None),
    ],
)
def test_a_limit_ends_in_a_loadable_model_and_is_named(
    config_file: Path, tmp_path: Path, settings: list[str], limit: str, step: int | None
) -> None:
    run = tmp_path / "run"
    settings = ["training.max_steps=50", *settings]
    result = pretrain(config_file, run, *settings)
    assert result.ended == f"finished: training.{limit}"
    assert read_json(run / "run.json")["ended"] == result.ended
    assert result.step == step if step is not None else result.step < 50
    assert AutoModelForCausalLM.from_pretrained(run / "model").config.n_layer == 2
    assert step_of(list_checkpoints(run / "checkpoints")[0]) == result.step
    before = content_of(run)
    assert pretrain(config_file, run, *settings, resume=True).ended == (
        f"already finished: training.{limit}"
    )
    assert content_of(run) == before


def test_patience_goes_on_where_it_stood_when_a_run_is_resumed(
    config_file: Path, tmp_path: Path
) -> None:
    settings = ["evaluation.eval_steps=1", "training.patience=3", *RISING]
    pretrain(config_file, tmp_path / "whole", "training.max_steps=40", *settings)
    ended = read_json(tmp_path / "whole" / "run.json")
    assert ended["ended"] == "finished: training.patience"
    pretrain(config_file, tmp_path / "parts", f"training.max_steps={ended['step'] - 1}", *settings)
    pretrain(config_file, tmp_path / "parts", "training.max_steps=40", *settings, resume=True)
    resumed = read_json(tmp_path / "parts" / "run.json")
    assert (resumed["ended"], resumed["step"]) == (ended["ended"], ended["step"])
    evaluations = [
        [(entry["step"], entry["loss"]) for entry in metrics_of(tmp_path / run) if "split" in entry]
        for run in ("whole", "parts")
    ]
    assert evaluations[0] == evaluations[1]


def test_the_checkpoint_of_the_best_evaluation_is_kept(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["evaluation.eval_steps=1", "training.save_steps=1", "training.max_steps=12", *RISING]
    result = pretrain(config_file, run, *settings)
    assert result.evaluation is not None
    best = result.evaluation["step"]
    assert best < 11, "the best is among the newest: nothing is tested"
    kept = [step_of(path) for path in list_checkpoints(run / "checkpoints")]
    assert kept == [12, 11, best]


def test_limits_on_a_held_out_loss_need_held_out_text(config_file: Path, tmp_path: Path) -> None:
    for name in ("target_loss", "patience"):
        with pytest.raises(ConfigError, match=f"training.{name} looks at the held-out loss"):
            pretrain(config_file, tmp_path / "run", "data.validation_fraction=0", f"training.{name}=1")


def test_resuming_with_another_library_version_warns(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(config_file, run)
    (checkpoint, *_) = list_checkpoints(run / "checkpoints")
    for name in ("state.json", "manifest.json"):
        path = checkpoint / name
        path.write_text(path.read_text().replace('"python": "3.', '"python": "2.'))
    # The hash of state.json, as the library of that time would have written it.
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    state = (checkpoint / "state.json").read_bytes()
    manifest["files"]["state.json"]["sha256"] = hashlib.sha256(state).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest, indent=2))
    events: list[Event] = []
    pretrain(config_file, run, "training.max_steps=7", resume=True, events=events)
    (warning,) = [event.text for event in events if isinstance(event, Note) and event.is_warning]
    assert warning.startswith("python 2.")
