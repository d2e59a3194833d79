from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from gptcli.config.schema import RuntimeSettings, Settings, TrainingSettings
from gptcli.data.batches import Batch, TrainingBatches
from gptcli.errors import Diverged, EnvironmentProblem, ExitCode
from gptcli.tasks.language_modelling import LanguageModelling
from gptcli.training.device import Compute, choose_compute
from gptcli.training.loop import Progress, StepDone, Task, train
from gptcli.training.optimizers import Optimizers
from tests.token_stores import numbered_documents, write_store

FP32 = choose_compute(RuntimeSettings(device="cpu", precision="fp32"), for_training=True)
FP16 = Compute(torch.device("cpu"), "fp16", "for the test", "for the test")


def settings_with(**training: object) -> Settings:
    values = {"batch_size": 8, "max_steps": 5, "warmup_steps": 2, "learning_rate": 1e-3, **training}
    return Settings(training=TrainingSettings.model_validate(values))


@pytest.fixture
def task(tmp_path: Path) -> LanguageModelling:
    store = write_store(tmp_path, numbered_documents([100, 140, 90]))
    batches = TrainingBatches(store, context_length=31, batch_size=8, seed=42)
    return LanguageModelling(batches, FP32)


def start(
    model: nn.Module,
    task: Task,
    settings: Settings,
    *,
    micro_batch_size: int = 8,
    compute: Compute = FP32,
    progress: Progress | None = None,
    optimizers: Optimizers | None = None,
) -> Iterator[StepDone]:
    """Train to max_steps; only steps whose update is made are yielded."""
    progress = progress or Progress()
    progress.micro_batch_size = micro_batch_size
    optimizers = optimizers or Optimizers(model, settings.training)
    if progress.step == settings.training.max_steps:
        return
    for event in train(model, task, optimizers, compute, settings, progress):
        if isinstance(event, StepDone):
            yield event
        if progress.step == settings.training.max_steps:
            return


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_training_equals_a_plain_loop_with_hugging_face_loss_and_torch_adamw(
    model: GPT2LMHeadModel, task: LanguageModelling
) -> None:
    reference = copy.deepcopy(model)
    settings = settings_with(max_steps=4, max_grad_norm=0.5, weight_decay=0.1)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in reference.parameters() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    # Up to the peak in two steps, then half a cosine to a tenth of it in two: halfway and at the end.
    rates = [5e-4, 1e-3, 5.5e-4, 1e-4]
    expected = []
    for step, rate in enumerate(rates):
        batch = task.batch(step)
        labels = np.concatenate([batch.input_ids[:, :1], batch.targets], axis=1)
        input_ids = np.where(labels < 0, 0, labels)
        loss = reference(torch.from_numpy(input_ids), labels=torch.from_numpy(labels)).loss
        adamw.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        expected.append((loss.item(), norm.item()))

    progress = Progress()
    done = list(start(model, task, settings, micro_batch_size=3, progress=progress))

    assert [each.step for each in done] == [1, 2, 3, 4]
    assert [each.learning_rate for each in done] == pytest.approx(rates)
    for each, (expected_loss, expected_norm) in zip(done, expected, strict=True):
        assert each.loss == pytest.approx(expected_loss, rel=1e-5)
        assert each.grad_norm == pytest.approx(expected_norm, rel=1e-4)
        assert expected_norm > 0.5, "nothing was clipped"
    torch.testing.assert_close(snapshot(model), snapshot(reference), rtol=0, atol=1e-5)
    assert progress.step == 4
    assert progress.tokens == sum(task.batch(step).token_count for step in range(4))


@pytest.mark.parametrize("max_grad_norm", [0.01, 0.0])
def test_gradients_are_scaled_down_to_the_norm_that_is_set_and_0_turns_it_off(
    model: GPT2LMHeadModel, task: LanguageModelling, max_grad_norm: float
) -> None:
    settings = settings_with(max_grad_norm=max_grad_norm)
    optimizers = Optimizers(model, settings.training)
    done = next(start(model, task, settings, optimizers=optimizers))
    assert done.grad_norm > 0.1
    # After one step AdamW's first moment is (1 - 0.9) times the gradient that it was given.
    moments = [t for name, t in optimizers.state_tensors().items() if name.endswith("/exp_avg")]
    given = math.sqrt(sum(moment.square().sum().item() for moment in moments)) / 0.1
    assert given == pytest.approx(max_grad_norm or done.grad_norm, rel=1e-3)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_the_micro_batch_size_does_not_change_the_loss_curve(
    model: GPT2LMHeadModel, task: LanguageModelling, micro_batch_size: int
) -> None:
    settings = settings_with(max_steps=6)
    other = copy.deepcopy(model)
    whole = [done.loss for done in start(model, task, settings)]
    split = [done.loss for done in start(other, task, settings, micro_batch_size=micro_batch_size)]
    assert split == pytest.approx(whole, rel=1e-6, abs=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    model: GPT2LMHeadModel, task: LanguageModelling, value: float
) -> None:
    progress = Progress()
    steps = start(model, task, settings_with(), progress=progress)
    next(steps)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = value
    before = snapshot(model)
    with pytest.raises(
        Diverged, match=r"^The loss is nan at step 2 \(batch: sequences 9 of epoch 1 to 5 of epoch 2\)"
    ) as caught:
        next(steps)
    assert caught.value.exit_code == ExitCode.DIVERGED == 6
    assert progress.step == 1
    torch.testing.assert_close(snapshot(model), before, rtol=0, atol=0, equal_nan=True)


class Scalar(nn.Module):
    """One weight, 1.0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


class OneTarget:
    """A task with one target a batch, whatever the step."""

    def batch(self, step: int) -> Batch:
        return Batch(
            np.zeros((1, 1), dtype=np.int64),
            np.ones(1, dtype=np.int64),
            np.zeros((1, 1), dtype=np.int64),
        )

    def describe_batch(self, step: int) -> str:
        return f"number {step}"

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        raise NotImplementedError

    def target_weight(self, batch: Batch) -> float:
        return 1


class RootOfNothing(OneTarget):
    """The loss is 0; its gradient is infinite."""

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        return (model.get_parameter("weight") - 1).sqrt().sum()


class InHalfPrecision(OneTarget):
    """The loss is `slope` times the weight, whose gradient goes through float16: at most 65504."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        return (model.get_parameter("weight").half().float() * self.slope).sum()


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    model = Scalar()
    with pytest.raises(Diverged, match=r"^The gradient norm is inf at step 1"):
        next(start(model, RootOfNothing(), settings_with()))
    assert model.weight.item() == 1.0


def test_dropout_is_decided_by_seed_and_step_alone(
    model: GPT2LMHeadModel, task: LanguageModelling
) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    settings = settings_with(learning_rate=1e-12, min_learning_rate_ratio=1.0)
    losses = [done.loss for done in start(model, task, settings)]

    torch.manual_seed(12345)
    progress = Progress(step=3)
    assert [done.loss for done in start(model, task, settings, progress=progress)] == losses[3:]

    class SameBatch(LanguageModelling):
        def batch(self, step: int) -> Batch:
            return task.batch(0)

    same_batch = SameBatch(TrainingBatches.__new__(TrainingBatches), FP32)
    masks_of = [done.loss for done in start(model, same_batch, settings)]
    assert masks_of[0] == pytest.approx(losses[0])
    assert len(set(masks_of)) == settings.training.max_steps


def test_an_fp16_overflow_halves_the_loss_scale_and_makes_no_update() -> None:
    model, settings, progress = Scalar(), settings_with(warmup_steps=0), Progress()
    optimizers = Optimizers(model, settings.training)
    steps = start(
        model,
        InHalfPrecision(slope=4),
        settings,
        compute=FP16,
        progress=progress,
        optimizers=optimizers,
    )
    done = next(steps)
    # 4 * 65536, 131072 and 65536 are beyond float16; 4 * 8192 is not.
    assert progress.loss_scale == 8192
    assert (done.step, done.grad_norm) == (1, 4.0)
    assert optimizers.state_tensors()["weight/step"].item() == 1
    assert next(steps).grad_norm == 4.0
    assert (progress.loss_scale, progress.steps_at_this_scale) == (8192, 2)


def test_fp16_that_overflows_without_a_loss_scale_has_diverged() -> None:
    model, progress = Scalar(), Progress()
    steps = start(model, InHalfPrecision(slope=1e6), settings_with(), compute=FP16, progress=progress)
    with pytest.raises(Diverged, match=r"^The gradient norm is inf at step 1"):
        next(steps)
    assert (progress.step, progress.loss_scale, model.weight.item()) == (0, 1.0, 1.0)


def test_the_loss_scale_doubles_after_2000_good_steps() -> None:
    model, progress = Scalar(), Progress(step=1, loss_scale=8.0)
    settings = settings_with(max_steps=2002)
    steps = start(model, InHalfPrecision(slope=1), settings, compute=FP16, progress=progress)
    assert len(list(islice(steps, 1999))) == 1999
    assert progress.loss_scale == 8
    next(steps)
    assert (progress.loss_scale, progress.steps_at_this_scale) == (16, 0)
    assert next(steps).grad_norm == 1.0


class FullAt(LanguageModelling):
    """Runs out of memory with more sequences at once than `most`."""

    def __init__(self, task: LanguageModelling, most: int) -> None:
        self._task, self._most = task, most

    def batch(self, step: int) -> Batch:
        return self._task.batch(step)

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        if len(batch.input_ids) > self._most:
            raise torch.OutOfMemoryError("no memory")
        return self._task.summed_loss(model, batch, gradient)


def test_memory_that_runs_out_halves_the_micro_batch_and_changes_no_result(
    model: GPT2LMHeadModel, task: LanguageModelling
) -> None:
    settings, other = settings_with(), copy.deepcopy(model)
    progress = Progress()
    halved = list(start(model, FullAt(task, most=2), settings, progress=progress))
    small = list(start(other, task, settings, micro_batch_size=2))
    assert progress.micro_batch_size == 2
    assert [done.loss for done in halved] == [done.loss for done in small]
    assert [done.grad_norm for done in halved] == [done.grad_norm for done in small]


def test_memory_that_does_not_hold_one_sequence_is_said_with_what_helps(
    model: GPT2LMHeadModel, task: LanguageModelling
) -> None:
    with pytest.raises(EnvironmentProblem, match=r"single sequence.*context_length") as caught:
        next(start(model, FullAt(task, most=0), settings_with()))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5


class BadAt(OneTarget):
    """The loss is the weight, but not a number in some steps."""

    def __init__(self, *steps: int) -> None:
        self._steps = steps
        self._step = -1

    def batch(self, step: int) -> Batch:
        self._step = step
        return super().batch(step)

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        return model.get_parameter("weight").sum() * (math.nan if self._step in self._steps else 1)


def test_bad_steps_are_skipped_as_often_in_a_row_as_is_set() -> None:
    settings = settings_with(skip_bad_steps=2, max_steps=8)
    progress = Progress()
    done = list(start(Scalar(), BadAt(1, 2, 5), settings, progress=progress))
    assert [each.step for each in done] == [1, 4, 5, 7, 8]
    assert (progress.steps_skipped, progress.skipped_in_a_row, progress.tokens) == (3, 0, 5)
    model = Scalar()
    steps = start(model, BadAt(1, 2, 3), settings)
    next(steps)
    weight = model.weight.item()
    with pytest.raises(Diverged, match=r"^The loss is nan at step 4 \(batch: number 3\)"):
        next(steps)
    assert model.weight.item() == weight
