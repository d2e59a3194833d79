"""Losses and scores that are not finite, from the step to the run folder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from gptcli.config.schema import RuntimeSettings, Settings
from gptcli.data.batches import Batch, TrainingBatches
from gptcli.errors import Diverged, ExitCode
from gptcli.models.saving import save_model
from gptcli.tasks.language_modelling import LanguageModelling
from gptcli.training.checkpoint import find_problem, list_checkpoints, newest_whole, step_of
from gptcli.training.device import choose_compute
from gptcli.training.job import DataSize, Evaluation, Job
from gptcli.training.loop import StepSkipped
from gptcli.training.run import TrainingEvent, TrainingRun
from gptcli.training.run_folder import RunFolder
from gptcli.training.stopping import StopSignals
from gptcli.training.trackers import Trackers
from tests.pipelines.test_train import (
    assert_same_weights,
    metrics_of,
    pretrain,
    read_json,
    untimed_metrics_of,
)
from tests.token_stores import numbered_documents, write_store

FP32 = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)


class SometimesNaN(LanguageModelling):
    """The loss of some batches is not a number; the held-out losses are as given."""

    def __init__(
        self, batches: TrainingBatches, bad_batches: set[int], held_out_losses: list[float]
    ) -> None:
        super().__init__(batches, FP32)
        self._bad_batches = bad_batches
        self._held_out_losses = iter(held_out_losses)
        self._step = -1

    def batch(self, step: int) -> Batch:
        self._step = step
        return super().batch(step)

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        loss = super().summed_loss(model, batch, gradient)
        return loss * math.nan if self._step in self._bad_batches else loss

    def evaluate(
        self, model: nn.Module, micro_batch_size: int, between_batches: Callable[[], None]
    ) -> Evaluation | None:
        loss = next(self._held_out_losses, None)
        return None if loss is None else Evaluation({"loss": loss})


@dataclass
class Runs:
    """Runs of eight steps with a checkpoint each, into folders in `path`."""

    path: Path
    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    batches: TrainingBatches

    def run(
        self,
        name: str,
        bad_batches: set[int],
        *,
        skip_bad_steps: int = 0,
        held_out_losses: list[float] | None = None,
        resume: bool = False,
    ) -> list[TrainingEvent]:
        training = {"max_steps": 8, "batch_size": 4, "save_steps": 1, "keep_checkpoints": 8}
        settings = Settings.model_validate(
            {
                "training": {**training, "warmup_steps": 0, "skip_bad_steps": skip_bad_steps},
                "evaluation": {"eval_steps": 2},
                "logging": {"log_steps": 1},
            }
        )
        folder = RunFolder(self.path / name)
        folder.path.mkdir(exist_ok=True)
        events: list[TrainingEvent] = []
        trained = copy.deepcopy(self.model)
        job = Job(
            settings=settings,
            task=SometimesNaN(self.batches, bad_batches, held_out_losses or []),
            model=trained,
            is_new=True,
            tokenizer=self.tokenizer,
            save_model=lambda path: save_model(trained, self.tokenizer, path),
            micro_batch_size=4,
            steps_per_epoch=1.0,
            data_fingerprint="data",
            tokenizer_fingerprint="tokenizer",
            train=DataSize(430),
            validation=DataSize(0),
            facts={},
            ledger={},
            summary=[],
        )
        run = TrainingRun(
            job, folder, FP32, StopSignals(), events.append, Trackers([], warn=pytest.fail)
        )
        if resume:
            checkpoint, _ = newest_whole(folder.checkpoints)
            assert checkpoint is not None
            run.resume(checkpoint)
        run.run()
        return events

    def checkpoint(self, name: str, step: int) -> Path:
        return self.path / name / "checkpoints" / f"step-{step:08d}"


@pytest.fixture
def runs(tmp_path: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> Runs:
    store = write_store(tmp_path, numbered_documents([200, 140, 90]))
    batches = TrainingBatches(store, context_length=32, batch_size=4, seed=42)
    return Runs(tmp_path, model, tokenizer, batches)


def test_a_skipped_step_is_counted_and_its_batch_is_passed_over(runs: Runs) -> None:
    events = runs.run("run", {2, 3, 6}, skip_bad_steps=2)
    skipped = [event for event in events if isinstance(event, StepSkipped)]
    assert [event.step for event in skipped] == [3, 4, 7]
    assert skipped[0].problem.startswith("The loss is nan at step 3 (batch: sequences 9 to 12 of epoch")
    facts = read_json(runs.path / "run" / "run.json")
    assert (facts["step"], facts["steps_skipped"]) == (8, 3)
    assert facts["ended"] == "finished: training.max_steps"
    trained_on = [runs.batches.batch(step).token_count for step in (0, 1, 4, 5, 7)]
    assert facts["tokens"] == sum(trained_on)
    entries = metrics_of(runs.path / "run")
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [entry["step"] for entry in entries if "skipped" in entry] == [3, 4, 7]
    assert entries[2]["skipped"] == skipped[0].problem
    for before, after in ((2, 4), (6, 7)):
        for file in ("model.safetensors", "optimizer.safetensors"):
            assert (runs.checkpoint("run", before) / file).read_bytes() == (
                runs.checkpoint("run", after) / file
            ).read_bytes()


def test_too_many_bad_steps_in_a_row_end_the_run_and_the_last_good_checkpoint_goes_on(
    runs: Runs,
) -> None:
    # 433 tokens are 14 sequences of 32 an epoch; the sixth batch has the 21st to the 24th.
    where = r"^The loss is nan at step 6 \(batch: sequences 7 to 10 of epoch 2\); its update was not"
    with pytest.raises(Diverged, match=where) as caught:
        runs.run("run", {2, 4, 5}, skip_bad_steps=1)
    assert f"continue from {runs.checkpoint('run', 5)} with --resume" in str(caught.value)
    assert caught.value.exit_code == ExitCode.DIVERGED == 6
    facts = read_json(runs.path / "run" / "run.json")
    assert (facts["ended"], facts["step"], facts["steps_skipped"]) == ("stopped: Diverged", 5, 2)
    checkpoints = list_checkpoints(runs.path / "run" / "checkpoints")
    assert [step_of(checkpoint) for checkpoint in checkpoints] == [5, 4, 3, 2, 1]
    assert [find_problem(checkpoint) for checkpoint in checkpoints] == [None] * 5

    # How many there were in a row is remembered.
    with pytest.raises(Diverged, match=where):
        runs.run("run", {2, 4, 5}, skip_bad_steps=1, resume=True)

    # What made the sixth batch bad has gone: the run equals one in which it never was.
    runs.run("run", set(), skip_bad_steps=1, resume=True)
    runs.run("other", {2, 4}, skip_bad_steps=1)
    assert_same_weights(runs.checkpoint("run", 8), runs.checkpoint("other", 8))
    assert untimed_metrics_of(runs.path / "run") == untimed_metrics_of(runs.path / "other")


@pytest.mark.parametrize("bad_loss", [math.nan, math.inf])
def test_a_held_out_loss_that_is_not_finite_is_never_the_best(runs: Runs, bad_loss: float) -> None:
    with pytest.raises(Diverged, match=f"after step 4 is {bad_loss}") as caught:
        runs.run("run", set(), held_out_losses=[3.0, bad_loss])
    assert caught.value.exit_code == 6
    assert read_json(runs.path / "run" / "run.json")["best_evaluation"] == {"step": 2, "loss": 3.0}
    assert_same_weights(runs.path / "run" / "model", runs.checkpoint("run", 2))
    assert not runs.checkpoint("run", 4).exists()


def test_a_first_held_out_loss_that_is_not_finite_leaves_no_model(runs: Runs) -> None:
    with pytest.raises(Diverged, match="after step 2 is nan"):
        runs.run("run", set(), held_out_losses=[math.nan])
    assert not (runs.path / "run" / "model").exists()
    assert read_json(runs.path / "run" / "run.json")["best_evaluation"] is None


def test_a_run_may_be_resumed_with_more_steps_to_skip(config_file: Path, tmp_path: Path) -> None:
    pretrain(config_file, tmp_path / "run", "training.max_steps=3")
    result = pretrain(config_file, tmp_path / "run", "training.skip_bad_steps=2", resume=True)
    assert (result.ended, result.step) == ("finished: training.max_steps", 6)
