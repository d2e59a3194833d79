"""What the jobs of all tasks have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from gptcli.config.schema import Settings
from gptcli.data.batches import Batch, target_tokens
from gptcli.data.examples import Examples
from gptcli.data.items import ItemReport, LengthLimit
from gptcli.data.progress import Notify
from gptcli.data.token_budget import TokenBatch
from gptcli.data.tokenizing import (
    load_tokenizer,
    tokenizer_fingerprint,
    tokenizer_summary,
    train_tokenizer,
)
from gptcli.errors import ConfigError, DataError
from gptcli.generation.samples import SampleWriter
from gptcli.models.adapters import without_adapters
from gptcli.models.layer import has_native_layers, use_fast_layers
from gptcli.models.saving import save_model
from gptcli.models.starting import StartingModel, TrainableModel
from gptcli.planning.memory import Device, automatic_micro_batch_size
from gptcli.planning.shape import Shape
from gptcli.planning.steps import planned_steps
from gptcli.training.compiling import choose_compilation
from gptcli.training.device import Compute
from gptcli.training.job import DataSize, EvaluatedTask, Job, Sample, count_parameters
from gptcli.training.loss import summed_head_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TaskData:
    """What a task has made of the data, as far as a job wants to know it."""

    context_length: int
    """Most tokens that a sequence may have."""
    longest: int
    """Most tokens that one has."""
    sequences_per_epoch: int
    fingerprint: str
    """Of all that can be learnt, in its order."""
    train: DataSize
    validation: DataSize
    ledger: dict[str, Any]
    summary: list[tuple[str, str]]

    @classmethod
    def of(
        cls, train: Examples, validation: Examples, limit: LengthLimit, report: ItemReport
    ) -> TaskData:
        """Return what is to be known of examples. Raises DataError if none is left to train on."""
        if not len(train):
            raise DataError(
                f"{', '.join(report.ledger['sources'])}: no training example is left; {limit.dropped:,} "
                f"were longer than model.context_length {limit.context_length}."
            )
        both = f"{train.fingerprint()} {validation.fingerprint()}"
        return cls(
            context_length=limit.context_length,
            longest=int(train.lengths.max()),
            sequences_per_epoch=len(train),
            fingerprint=hashlib.sha256(both.encode()).hexdigest(),
            train=DataSize(train.token_count, len(train)),
            validation=DataSize(validation.token_count, len(validation)),
            ledger=report.ledger,
            summary=report.summary,
        )


def choose_tokenizer(
    settings: Settings, start: StartingModel, texts: Iterable[str], notify: Notify
) -> PreTrainedTokenizerFast:
    """Return that of the model, that of the settings, or a new one trained on the texts."""
    tokenizer = start.tokenizer()
    if tokenizer is not None:
        return tokenizer
    if settings.tokenizer.name is not None:
        return load_tokenizer(settings.tokenizer.name)
    assert settings.tokenizer.train is not None
    return train_tokenizer(iter(texts), settings.tokenizer.train, notify)


def assemble_job(
    settings: Settings,
    compute: Compute,
    task: EvaluatedTask,
    trainable: TrainableModel,
    tokenizer: PreTrainedTokenizerFast,
    data: TaskData,
    prompt_ids: Callable[[str], list[int]] | None = None,
) -> Job:
    """Return the job, its model on the device and the settings that the data decides filled in.

    prompt_ids: of a task that writes text, returns the tokens that a prompt becomes, at least one.
    Raises ConfigError for settings that this data cannot serve.
    """
    training = settings.training
    for name in ("target_loss", "patience"):
        if getattr(training, name) is not None and not data.validation.tokens:
            raise ConfigError(
                f"training.{name} looks at the held-out loss, but data.validation_fraction is 0."
            )
    steps_per_epoch = data.sequences_per_epoch / training.batch_size
    tokens_per_step = training.batch_size * data.longest
    steps = planned_steps(training, count_parameters(trainable.model), tokens_per_step, steps_per_epoch)
    update = {"max_steps": steps, "epochs": None, "tokens_per_parameter": None}
    training = training.model_copy(update=update)
    settings = settings.model_copy(update={"training": training})
    shape = settings.model.model_copy(update={"context_length": data.context_length})
    settings = settings.model_copy(update={"model": shape})
    samples = None
    if prompt_ids is not None and settings.evaluation.sample_prompts:
        longest = int(trainable.model.config.n_positions)
        samples = SampleWriter(settings, tokenizer, longest, prompt_ids)
    model = trainable.model.to(compute.device)
    is_on_cpu = compute.device.type == "cpu"
    is_native = is_on_cpu and compute.precision == "bf16" and has_native_layers(model)
    tokens = training.max_steps * tokens_per_step
    is_compiled, why = choose_compilation(
        settings, compute, count_parameters(model), tokens, is_native=is_native
    )
    if is_on_cpu:
        use_fast_layers(model, compute.precision, is_compiled=is_compiled)
    # A resumed run goes on with the same kernels: others round otherwise.
    runtime = settings.runtime.model_copy(update={"compile": is_compiled})
    settings = settings.model_copy(update={"runtime": runtime})

    def save(folder: Path) -> None:
        save_model(without_adapters(model), tokenizer, folder)

    def write_samples(between_samples: Callable[[], None]) -> list[Sample]:
        assert samples is not None
        return samples.write(without_adapters(model), compute.dtype, between_samples)

    return Job(
        settings=settings,
        task=task,
        model=model,
        is_new=trainable.is_new,
        tokenizer=tokenizer,
        save_model=save,
        micro_batch_size=_micro_batch_size(settings, compute, model, data.longest),
        steps_per_epoch=steps_per_epoch,
        data_fingerprint=data.fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        train=data.train,
        validation=data.validation,
        facts={
            "start": trainable.origin,
            "tokenizer": tokenizer_summary(tokenizer),
            "compiled": f"{'yes' if is_compiled else 'no'}, {why}",
        },
        ledger=data.ledger,
        summary=[("start", trainable.origin), *data.summary],
        write_samples=None if samples is None else write_samples,
    )


def _micro_batch_size(settings: Settings, compute: Compute, model: Any, longest: int) -> int:
    wanted = settings.training.micro_batch_size
    if wanted != "auto":
        return wanted
    config = model.config
    shape = Shape.of(config.n_layer, config.n_head, config.n_embd, config.n_positions, config.vocab_size)
    device = cast(Device, compute.device.type)
    return automatic_micro_batch_size(shape, settings.training.batch_size, longest, device)


def ids_and_lengths(batch: Batch | TokenBatch[Any], compute: Compute) -> tuple[Tensor, Tensor]:
    """Return both on the device."""
    input_ids = torch.from_numpy(batch.input_ids).to(compute.device, non_blocking=True)
    lengths = torch.from_numpy(batch.lengths).to(compute.device, non_blocking=True)
    return input_ids, lengths


class Batches(Protocol):
    """The batches of a run, without end."""

    def batch(self, step: int) -> Batch: ...

    def describe(self, step: int) -> str: ...


class BatchedTask:
    """What the tasks have in common: batches that are made elsewhere, and how to learn from them."""

    def __init__(self, batches: Batches, compute: Compute, label_smoothing: float) -> None:
        self._batches = batches
        self._compute = compute
        self._label_smoothing = label_smoothing

    def batch(self, step: int) -> Batch:
        return self._batches.batch(step)

    def describe_batch(self, step: int) -> str:
        return self._batches.describe(step)

    def compile_loss(self) -> None:
        """Nothing here is worth it."""


class TokenTask(BatchedTask):
    """What the tasks have in common that learn which token comes next."""

    best_by = "loss"
    _is_loss_compiled = False

    def compile_loss(self) -> None:
        self._is_loss_compiled = True

    def target_weight(self, batch: Batch) -> float:
        return target_tokens(batch)

    def summed_loss(self, model: Any, batch: Batch, gradient: float = 1.0) -> Tensor:
        input_ids = torch.from_numpy(batch.input_ids).to(self._compute.device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(self._compute.device, non_blocking=True)
        # No attention mask: padding is on the right, where causal attention never looks, and a mask
        # would leave the fast attention path.
        hidden = model.transformer(input_ids=input_ids, use_cache=False).last_hidden_state
        # Smoothing is for learning; scores are of the plain loss.
        smoothing = self._label_smoothing if model.training else 0.0
        return summed_head_loss(
            hidden,
            model.lm_head.weight,
            targets,
            smoothing,
            is_compiled=self._is_loss_compiled,
            gradient=gradient,
        )
