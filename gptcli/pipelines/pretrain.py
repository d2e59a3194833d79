"""Pretraining: settings in, a run folder with a model out."""

from __future__ import annotations

import datetime
import json
import math
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

from gptcli import __version__
from gptcli.config.loading import dump_settings, load_settings
from gptcli.config.schema import Settings
from gptcli.data.batches import TrainingBatches, evaluation_batches
from gptcli.data.preparation import PreparationProgress, PreparedText, prepare_text
from gptcli.data.tokenizing import tokenizer_summary
from gptcli.errors import ConfigError, DataError, Diverged, ModelError
from gptcli.evaluation.perplexity import TextScore, score_text
from gptcli.files import write_text
from gptcli.models.architecture import count_parameters, model_config, new_model
from gptcli.models.saving import save_model
from gptcli.tasks.language_modelling import LanguageModelling
from gptcli.training.checkpoint import (
    Fingerprints,
    load_checkpoint,
    newest_whole,
    read_state,
    remove_old_checkpoints,
    save_checkpoint,
)
from gptcli.training.device import Compute, choose_compute
from gptcli.training.loop import Progress, StepDone, train
from gptcli.training.metrics_log import MetricsLog
from gptcli.training.optimizers import Optimizers
from gptcli.training.run_folder import RunFolder

# micro_batch_size: auto keeps the logits, the largest tensor of a small model, below this many numbers.
AUTO_LOGITS = 2**26

# A resumed run may change these: they do not change what a step computes from the weights before it.
HARMLESS_ON_RESUME = (
    "training.max_steps",
    "training.micro_batch_size",
    "training.save_steps",
    "training.keep_checkpoints",
    "evaluation",
    "generation",
    "logging",
    "runtime.threads",
    "data.source",  # Its content is compared instead, by fingerprint.
    "data.validation_source",
    "data.cache_dir",
)


@dataclass(frozen=True)
class Note:
    """Something that the user should know; the run goes on."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Started:
    """Training begins at `step`."""

    step: int
    max_steps: int
    parameters: int
    steps_per_epoch: float


@dataclass(frozen=True)
class Evaluated:
    """A score on the held-out text."""

    step: int
    score: TextScore
    is_best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk."""

    path: Path


Event = PreparationProgress | Note | Started | StepDone | Evaluated | Saved
Notify = Callable[[Event], None]


@dataclass(frozen=True)
class PretrainResult:
    """How a run, or a dry run, ended."""

    run: str
    model: str | None
    """None for a dry run."""
    ended: str
    """"finished", "already finished" or "dry run"."""
    step: int
    parameters: int
    train_tokens: int
    validation_tokens: int
    epochs: float
    """How often the whole run goes through the training text."""
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
) -> PretrainResult:
    """Pretrain a GPT-2 into `output_dir`; with `dry_run`, do all but train and write a run.

    Raises a GptcliError for anything that the user can mend, before training wherever that is possible.
    """
    folder = RunFolder(output_dir)
    if not dry_run:
        folder.check(resume=resume, overwrite=overwrite)
    compute = choose_compute(settings.runtime, for_training=True)
    notify(Note(f"Device: {compute.describe()}."))
    resumed_from = None
    if resume and not dry_run:
        resumed_from, warnings = newest_whole(folder.checkpoints)
        for warning in warnings:
            notify(Note(warning, is_warning=True))
        if resumed_from is not None:
            _check_settings_match(settings, folder)
    text = prepare_text(settings, notify)
    run = _Run(settings, folder, compute, text, notify)
    if dry_run:
        return run.result("dry run")
    fingerprints = Fingerprints(text.data_fingerprint, text.tokenizer_fingerprint)
    if resumed_from is not None:
        _check_fingerprints(resumed_from, read_state(resumed_from).fingerprints, fingerprints)
        state = load_checkpoint(resumed_from, run.model, run.optimizers)
        run.progress = state.progress
        if run.progress.step >= settings.training.max_steps and _has_ended(folder):
            return run.result("already finished")
        notify(Note(f"Resuming from {resumed_from}."))
    elif resume:
        notify(Note("There is no checkpoint yet; starting at step 0."))
    if overwrite:
        folder.clear()
    run.train(fingerprints)
    return run.result("finished")


class _Run:
    """One training run: its parts, and what is written as it goes."""

    def __init__(
        self,
        settings: Settings,
        folder: RunFolder,
        compute: Compute,
        text: PreparedText,
        notify: Notify,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.compute = compute
        self.text = text
        self.notify = notify
        self.progress = Progress()
        context_length = settings.model.context_length
        assert context_length is not None  # The schema fills it in.
        self.context_length = context_length
        _check_lengths(text, context_length)
        self.batches = TrainingBatches(
            text.train,
            context_length=context_length,
            batch_size=settings.training.batch_size,
            seed=settings.runtime.seed,
        )
        self.task = LanguageModelling(self.batches, compute.device)
        config = model_config(settings.model, text.tokenizer)
        self.model: GPT2LMHeadModel = new_model(config, settings.runtime.seed).to(compute.device)
        self.optimizers = Optimizers(self.model, settings.training)
        self.micro_batch_size = _micro_batch_size(settings, config.vocab_size, context_length)
        self.metrics = MetricsLog(folder.metrics)

    def train(self, fingerprints: Fingerprints) -> None:
        """Train to the last step, publishing checkpoints and the best model on the way."""
        training, progress = self.settings.training, self.progress
        self._write_start(fingerprints)
        self.metrics.drop_after(progress.step)
        self.notify(
            Started(
                progress.step,
                training.max_steps,
                count_parameters(self.model),
                self.batches.sequences_per_epoch / training.batch_size,
            )
        )
        try:
            for done in train(
                self.model,
                self.task,
                self.optimizers,
                self.compute,
                self.settings,
                progress,
                self.micro_batch_size,
            ):
                self._after_step(done, fingerprints)
        except BaseException as error:
            self._write_end(f"stopped: {type(error).__name__}")
            raise
        if self.progress.best is None:
            save_model(self.model, self.text.tokenizer, self.folder.model)
        self._write_end("finished")

    def _after_step(self, done: StepDone, fingerprints: Fingerprints) -> None:
        settings, step = self.settings, done.step
        is_last = step == settings.training.max_steps
        self.notify(done)
        if step % settings.logging.log_steps == 0 or is_last:
            self.metrics.append(
                {
                    "step": step,
                    "tokens": self.progress.tokens,
                    "loss": done.loss,
                    "lr": done.learning_rate,
                    "grad_norm": done.grad_norm,
                    "tokens_per_second": round(done.tokens / done.seconds, 1),
                }
            )
        if self.text.validation and (step % settings.evaluation.eval_steps == 0 or is_last):
            self._evaluate(step)
        if step % settings.training.save_steps == 0 or is_last:
            path = save_checkpoint(
                self.folder.checkpoints, self.model, self.optimizers, self.progress, fingerprints
            )
            remove_old_checkpoints(self.folder.checkpoints, settings.training.keep_checkpoints, path)
            self.notify(Saved(path))

    def _evaluate(self, step: int) -> None:
        validation, progress = self.text.validation, self.progress
        assert validation is not None
        max_tokens = self.settings.evaluation.max_tokens
        score = score_text(
            self.model,
            self.task,
            evaluation_batches(
                validation,
                context_length=self.context_length,
                batch_size=self.micro_batch_size,
                max_tokens=max_tokens,
            ),
            self._validation_bytes(),
            self.compute,
        )
        # Beyond a float: stopping here keeps these weights out of checkpoints and model/.
        if not math.isfinite(score.perplexity):
            raise Diverged(
                f"The held-out loss after step {step} is {score.loss:g}: training has diverged. Start "
                "again with a lower training.learning_rate, or more training.warmup_steps."
            )
        is_best = score.loss < (progress.best["loss"] if progress.best else math.inf)
        entry = {
            "step": step,
            "loss": score.loss,
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
        }
        if is_best:
            progress.best = entry
            save_model(self.model, self.text.tokenizer, self.folder.model)
        self.metrics.append({**entry, "tokens": progress.tokens, "split": "validation"})
        self.notify(Evaluated(step, score, is_best))

    def _validation_bytes(self) -> int:
        """Return the bytes of the text that evaluations score."""
        validation, max_tokens = self.text.validation, self.settings.evaluation.max_tokens
        assert validation is not None
        if max_tokens is None or max_tokens >= validation.token_count:
            return validation.count.bytes
        token_ids = validation.read_circular(0, max_tokens).tolist()
        scored = self.text.tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return max(1, len(scored.encode()))

    def result(self, ended: str) -> PretrainResult:
        max_steps = self.settings.training.max_steps
        return PretrainResult(
            run=str(self.folder.path),
            model=None if ended == "dry run" else str(self.folder.model),
            ended=ended,
            step=self.progress.step,
            parameters=count_parameters(self.model),
            train_tokens=self.text.train.token_count,
            validation_tokens=self.text.ledger.validation.tokens,
            epochs=max_steps * self.settings.training.batch_size / self.batches.sequences_per_epoch,
            training_seconds=self.progress.training_seconds,
            evaluation=self.progress.best,
        )

    def _write_start(self, fingerprints: Fingerprints) -> None:
        """Write what describes the run: run.json, config.yaml, data.json."""
        lengths = self.batches.sequences_per_epoch * self.context_length
        epoch = {
            "sequences": self.batches.sequences_per_epoch,
            "padding_tokens": lengths - self.text.train.token_count,
            "tokens_lost": max(0, self.text.train.token_count - lengths),
        }
        ledger = {**self.text.ledger.as_dict(), "epoch": epoch}
        self._facts: dict[str, Any] = {
            "command": sys.argv,
            "working_directory": str(Path.cwd()),
            "task": self.settings.task,
            "parameters": count_parameters(self.model),
            "fingerprints": asdict(fingerprints),
            "tokenizer": tokenizer_summary(self.text.tokenizer),
            "versions": {
                "gptcli": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
            },
            "hardware": {
                "platform": platform.platform(),
                "device": str(self.compute.device),
                "device_reason": self.compute.device_reason,
                "precision": self.compute.precision,
                "precision_reason": self.compute.precision_reason,
                "cpu_threads": torch.get_num_threads(),
            },
            "micro_batch_size": self.micro_batch_size,
            "started": _now(),
            "started_at_step": self.progress.step,
        }
        self._write_end("running")
        write_text(self.folder.config, dump_settings(self.settings))
        write_text(self.folder.ledger, json.dumps(ledger, indent=2, ensure_ascii=False) + "\n")

    def _write_end(self, ended: str) -> None:
        """Write run.json: what the run is, how far it came and how it ended."""
        outcome = {
            "ended": ended,
            "updated": _now(),
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "training_seconds": round(self.progress.training_seconds, 3),
            "best_evaluation": self.progress.best,
        }
        text = json.dumps({**self._facts, **outcome}, indent=2, ensure_ascii=False)
        write_text(self.folder.run, text + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_lengths(text: PreparedText, context_length: int) -> None:
    """Refuse a text that does not fill one sequence: there is next to nothing to learn from it."""
    tokens = text.train.token_count
    if tokens < context_length:
        raise DataError(
            f"{', '.join(text.ledger.sources)}: the training text has {tokens} tokens, less than one "
            f"sequence of model.context_length {context_length}. Add text, or lower context_length."
        )


def _micro_batch_size(settings: Settings, vocab_size: int, context_length: int) -> int:
    wanted = settings.training.micro_batch_size
    if wanted != "auto":
        return wanted
    fitting = AUTO_LOGITS // (vocab_size * context_length)
    return max(1, min(settings.training.batch_size, fitting))


def _check_settings_match(settings: Settings, folder: RunFolder) -> None:
    """Refuse to resume with a setting that would make the rest of the run another run."""
    before = _flatten(load_settings(folder.config).model_dump())
    now = _flatten(settings.model_dump())
    problems = [
        f"{folder.path} was started with {name} {before.get(name)!r}; it is now {now.get(name)!r}. "
        "Resume with the old value, or start another run."
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(HARMLESS_ON_RESUME)
    ]
    if problems:
        raise ConfigError(*problems)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _check_fingerprints(checkpoint: Path, before: Fingerprints, now: Fingerprints) -> None:
    for what in ("data", "tokenizer"):
        if getattr(before, what) != getattr(now, what):
            raise ModelError(
                f"{checkpoint} cannot be resumed: the {what} is not what it was trained on. Restore "
                "it, or start another run with another --output-dir."
            )


def _has_ended(folder: RunFolder) -> bool:
    try:
        return bool(json.loads(folder.run.read_text())["ended"] == "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return False
