"""Pretraining: settings in, a run folder with a model out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config.schema import Settings
from gptcli.data.batches import TrainingBatches
from gptcli.data.preparation import PreparationProgress, PreparedText, prepare_text
from gptcli.data.tokenizing import tokenizer_summary
from gptcli.errors import ConfigError, DataError
from gptcli.models.architecture import count_parameters, model_config, new_model
from gptcli.tasks.language_modelling import HeldOutText, LanguageModelling
from gptcli.training.checkpoint import Origin, newest_whole
from gptcli.training.device import Compute, choose_compute
from gptcli.training.run import (
    Note,
    TrainingEvent,
    TrainingRun,
    check_settings_match,
    library_versions,
)
from gptcli.training.run_folder import RunFolder
from gptcli.training.stopping import StopSignals

# micro_batch_size: auto keeps the logits, the largest tensor of a small model, below this many numbers
# on a CPU. On a GPU it starts from the whole batch and is halved until it fits.
AUTO_LOGITS = 2**26

Event = PreparationProgress | TrainingEvent
Notify = Callable[[Event], None]


@dataclass(frozen=True)
class PretrainResult:
    """How a run, or a dry run, ended."""

    run: str
    model: str | None
    """None for a dry run."""
    ended: str
    """"dry run", or "finished: LIMIT" or "already finished: LIMIT" with the setting that ended it."""
    step: int
    parameters: int
    train_tokens: int
    validation_tokens: int
    epochs: float
    """How often the run has gone (a dry run: would go) through the training text."""
    steps_skipped: int
    """Of the steps, those whose update was left out: training.skip_bad_steps."""
    training_seconds: float
    evaluation: dict[str, float] | None
    """The best evaluation: step, loss, perplexity, bits_per_byte."""


def run_pretraining(
    settings: Settings,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    notify: Notify = lambda event: None,
    signals: StopSignals | None = None,
) -> PretrainResult:
    """Pretrain a GPT-2 into `output_dir`; with `dry_run`, do all but train and write a run.

    signals: what asks to stop; none if not given. Raises a GptcliError for anything that the user can
    mend, before training wherever that is possible, and InterruptedRun, with all saved, when a signal
    asks to stop.
    """
    folder = RunFolder(output_dir)
    signals = signals or StopSignals()

    def notify_and_look(event: Event) -> None:
        notify(event)
        signals.raise_if_received()

    signals.raise_if_received()
    if dry_run:
        return _Pretraining(settings, folder, signals, notify, notify_and_look).result("dry run")
    with folder.lock():
        folder.check(resume=resume, overwrite=overwrite)
        checkpoint, warnings = newest_whole(folder.checkpoints) if resume else (None, [])
        for warning in warnings:
            notify(Note(warning, is_warning=True))
        if checkpoint is not None:
            check_settings_match(checkpoint, settings)
        pretraining = _Pretraining(settings, folder, signals, notify, notify_and_look)
        run = pretraining.run
        if checkpoint is not None:
            run.resume(checkpoint)
            limit, facts = run.limit(), folder.read_facts()
            if limit and facts.get("ended") == f"finished: {limit}":
                # The last evaluation may have been made after this checkpoint was saved.
                run.progress.best = facts.get("best_evaluation")
                return pretraining.result(f"already finished: {limit}")
            notify(Note(f"Resuming from {checkpoint}."))
        elif resume:
            notify(Note("There is no checkpoint yet; starting at step 0."))
        if overwrite:
            folder.clear()
        run.check_disk_space()
        signals.raise_if_received()
        return pretraining.result(f"finished: {pretraining.train()}")


class _Pretraining:
    """A run of language modelling, put together from its parts."""

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        signals: StopSignals,
        notify: Notify,
        notify_of_preparation: Notify,
    ) -> None:
        self._settings = settings
        self._folder = folder
        compute = choose_compute(settings.runtime, for_training=True)
        notify(Note(f"Device: {compute.describe()}."))
        text = self._text = prepare_text(settings, notify_of_preparation)
        context_length = settings.model.context_length
        assert context_length is not None  # The schema fills it in.
        self._context_length = context_length
        _check_lengths(text, context_length)
        for name in ("target_loss", "patience"):
            if getattr(settings.training, name) is not None and text.validation is None:
                raise ConfigError(
                    f"training.{name} looks at the held-out loss, but data.validation_fraction is 0."
                )
        self._batches = TrainingBatches(
            text.train,
            context_length=context_length,
            batch_size=settings.training.batch_size,
            seed=settings.runtime.seed,
        )
        held_out = None
        if text.validation is not None:
            max_tokens = settings.evaluation.max_tokens
            held_out = HeldOutText(text.validation, text.tokenizer, context_length, max_tokens)
        config = model_config(settings.model, text.tokenizer)
        model = new_model(config, settings.runtime.seed).to(compute.device)
        self._parameters = count_parameters(model)
        self.run = TrainingRun(
            settings,
            folder,
            compute,
            model,
            text.tokenizer,
            LanguageModelling(self._batches, compute, held_out),
            Origin(
                settings=settings.model_dump(mode="json"),
                data=text.data_fingerprint,
                tokenizer=text.tokenizer_fingerprint,
                versions=library_versions(),
            ),
            _micro_batch_size(settings, compute, config.vocab_size, context_length),
            signals,
            notify,
        )

    def train(self) -> str:
        """Train, and return the setting whose limit ended it."""
        positions = self._batches.sequences_per_epoch * self._context_length
        tokens = self._text.train.token_count
        ledger: dict[str, Any] = {
            **self._text.ledger.as_dict(),
            "epoch": {
                "sequences": self._batches.sequences_per_epoch,
                "padding_tokens": positions - tokens,
                "tokens_lost": max(0, tokens - positions),
            },
        }
        facts = {"tokenizer": tokenizer_summary(self._text.tokenizer)}
        steps_per_epoch = self._batches.sequences_per_epoch / self._settings.training.batch_size
        return self.run.run(facts, ledger, steps_per_epoch)

    def result(self, ended: str) -> PretrainResult:
        progress = self.run.progress
        is_dry = ended == "dry run"
        steps = self._settings.training.max_steps if is_dry else progress.step
        sequences = steps * self._settings.training.batch_size
        return PretrainResult(
            run=str(self._folder.path),
            model=None if is_dry else str(self._folder.model),
            ended=ended,
            step=progress.step,
            parameters=self._parameters,
            train_tokens=self._text.train.token_count,
            validation_tokens=self._text.ledger.validation.tokens,
            epochs=sequences / self._batches.sequences_per_epoch,
            steps_skipped=progress.steps_skipped,
            training_seconds=progress.training_seconds,
            evaluation=progress.best,
        )


def _check_lengths(text: PreparedText, context_length: int) -> None:
    """Refuse a text that does not fill one sequence: there is next to nothing to learn from it."""
    tokens = text.train.token_count
    if tokens < context_length:
        raise DataError(
            f"{', '.join(text.ledger.sources)}: the training text has {tokens} tokens, less than one "
            f"sequence of model.context_length {context_length}. Add text, or lower context_length."
        )


def _micro_batch_size(settings: Settings, compute: Compute, vocab_size: int, context_length: int) -> int:
    wanted = settings.training.micro_batch_size
    if wanted != "auto":
        return wanted
    if compute.device.type == "cuda":
        return settings.training.batch_size
    fitting = AUTO_LOGITS // (vocab_size * context_length)
    return max(1, min(settings.training.batch_size, fitting))
