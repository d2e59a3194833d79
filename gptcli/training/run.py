"""A run: the loop, and what happens between two of its steps.

Between steps, always in this order,

1. the model is evaluated, if it is time and this step has not been evaluated;
2. the limits are looked at (steps, minutes, tokens, target, patience);
3. a checkpoint is saved, if it is time, if a limit is reached, or if somebody asks for one;
4. the run ends, if a limit is reached or a signal has asked for it.

All of it depends on `Progress` alone, so a run that was killed anywhere goes on as if it had not been.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gptcli import __version__
from gptcli.config.loading import dump_settings
from gptcli.config.schema import Settings
from gptcli.errors import ConfigError, Diverged, EnvironmentProblem, InterruptedRun, ModelError
from gptcli.files import write_text
from gptcli.training.checkpoint import (
    Origin,
    check_disk_space,
    checkpoint_bytes,
    list_checkpoints,
    load_checkpoint,
    read_state,
    rotate_checkpoints,
    save_checkpoint,
    step_of,
)
from gptcli.training.compiling import compile_layers, uncompiled
from gptcli.training.device import Compute
from gptcli.training.job import Evaluation, Job, Sample, count_parameters, count_trained_parameters
from gptcli.training.loop import (
    MicroBatchHalved,
    Progress,
    StepDone,
    StepSkipped,
    halve_micro_batch,
    is_out_of_memory,
    train,
)
from gptcli.training.metrics_log import MetricsLog
from gptcli.training.optimizers import Optimizers
from gptcli.training.run_folder import RunFolder
from gptcli.training.stopping import StopSignals, reached_limit
from gptcli.training.trackers import TrackedRun, Trackers

# A resumed run may change these: they do not change what a step computes from the weights before it.
HARMLESS_ON_RESUME = (
    "training.max_steps",  # But for the learning rate, whose cosine is then stretched; meant so.
    "training.max_minutes",
    "training.max_tokens",
    "training.epochs",  # Turned into max_steps.
    "training.tokens_per_parameter",  # As well.
    "training.target_loss",
    "training.patience",
    "training.skip_bad_steps",
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
    """Of the model."""
    trained_parameters: int
    """Those that are not frozen, and those of adapters."""
    steps_per_epoch: float


@dataclass(frozen=True)
class Evaluated:
    """A score on the held-out data."""

    step: int
    scores: dict[str, float]
    details: dict[str, Any]
    is_best: bool


@dataclass(frozen=True)
class Sampled:
    """What the model writes now after evaluation.sample_prompts."""

    step: int
    samples: list[Sample]


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk."""

    path: Path


@dataclass(frozen=True)
class Working:
    """Between two steps: what goes on, and how far it is."""

    what: str
    done: int
    total: int | None
    """None if it is not known: the first time."""


TrainingEvent = (
    Note | Started | StepDone | StepSkipped | MicroBatchHalved | Working | Evaluated | Sampled | Saved
)


class TrainingRun:
    """One run of one task into one run folder."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        compute: Compute,
        signals: StopSignals,
        notify: Callable[[TrainingEvent], None],
        trackers: Trackers,
    ) -> None:
        self._job = job
        self._settings = job.settings
        self._folder = folder
        self._compute = compute
        self._model = job.model
        self._origin = Origin(
            settings=job.settings.model_dump(mode="json"),
            data=job.data_fingerprint,
            tokenizer=job.tokenizer_fingerprint,
            versions=library_versions(),
        )
        self._signals = signals
        self._notify = notify
        self._optimizers = Optimizers(job.model, job.settings.training)
        self._trackers = trackers
        self._metrics = MetricsLog(folder.metrics, then=trackers.log)
        self._saved_step: int | None = None
        self._elapsed_before = 0.0
        # How many parts each kind of work had the last time: it is likely to have as many again.
        self._parts: dict[str, int] = {}
        self.progress = Progress(micro_batch_size=job.micro_batch_size)

    def resume(self, checkpoint: Path) -> None:
        """Take weights, optimizer state and progress from a whole checkpoint.

        Raises ModelError if the data or the tokenizer is another one.
        """
        before = read_state(checkpoint).origin
        for what in ("data", "tokenizer"):
            if getattr(before, what) != getattr(self._origin, what):
                raise ModelError(
                    f"{checkpoint} cannot be resumed: the {what} is not what it was trained on. "
                    "Restore it, or start another run with another --output-dir."
                )
        if before.versions != self._origin.versions:
            changes = [
                f"{name} {before.versions.get(name)} is now {version}"
                for name, version in self._origin.versions.items()
                if before.versions.get(name) != version
            ]
            self._notify(
                Note(f"{', '.join(changes)}: numbers may differ in the last digits.", is_warning=True)
            )
        micro_batch_size = self.progress.micro_batch_size
        self.progress = load_checkpoint(checkpoint, self._model, self._optimizers).progress
        setting = self._settings.training.micro_batch_size
        if setting != before.settings["training"]["micro_batch_size"]:
            # Else what fitted before is kept: memory may have run out.
            self.progress.micro_batch_size = micro_batch_size
        self._elapsed_before = self.progress.elapsed_seconds
        self._saved_step = step_of(checkpoint)

    def check_disk_space(self) -> None:
        """Raise EnvironmentProblem if the disk cannot hold the checkpoints and models of this run."""
        one = checkpoint_bytes(self._model, self._optimizers)
        kept = self._settings.training.keep_checkpoints + 1  # That of the best evaluation.
        model = sum(parameter.numel() * 4 for parameter in self._model.parameters())
        # One more of each while a new one is written.
        needed = (kept + 1) * one + 2 * model
        there = sum(
            file.stat().st_size
            for folder in (self._folder.checkpoints, self._folder.model)
            for file in folder.rglob("*")
            if file.is_file()
        )
        check_disk_space(self._folder.path, needed - there, "the checkpoints of this run")

    def limit(self) -> str | None:
        """Return the setting whose limit the run has reached, or None."""
        return reached_limit(self._settings.training, self.progress)

    def run(self) -> str:
        """Train until a limit is reached and return the setting that set it.

        Raises InterruptedRun, with all saved, when a signal asks for it; Diverged; EnvironmentProblem.
        """
        self._started = time.monotonic()
        self._folder.remove_partial()
        tracked = self._tracked_run()
        self._trackers.begin(tracked)
        self._write_start(tracked)
        self._metrics.drop_after(self.progress.step, self.progress.evaluated_step)
        self._notify(
            Started(
                self.progress.step,
                self._settings.training.max_steps,
                count_parameters(self._model),
                count_trained_parameters(self._model),
                self._job.steps_per_epoch,
            )
        )
        if self._settings.runtime.compile:
            compile_layers(self._model)
            self._job.task.compile_loss()
        try:
            limit = self._between_steps()
            if limit is None:
                for event in train(
                    self._model,
                    self._job.task,
                    self._optimizers,
                    self._compute,
                    self._settings,
                    self.progress,
                ):
                    self._notify(event)
                    if isinstance(event, StepDone):
                        self._log(event)
                    elif isinstance(event, StepSkipped):
                        self._metrics.append({"step": event.step, "skipped": event.problem})
                    if not isinstance(event, MicroBatchHalved):
                        self._update_elapsed()
                        limit = self._between_steps()
                    if limit is not None:
                        break
            assert limit is not None
            if self.progress.best is None:
                self._job.save_model(self._folder.model)
        except BaseException as error:
            self._update_elapsed()
            with suppress(EnvironmentProblem, OSError):  # The first problem is the one to tell.
                self._write_end(f"stopped: {type(error).__name__}", problem=str(error))
            if isinstance(error, Diverged):
                raise Diverged(f"{error} {self._way_on()}") from error
            raise
        self._update_elapsed()
        self._write_end(f"finished: {limit}")
        return limit

    def _between_steps(self) -> str | None:
        """Evaluate, save and end, each if it is time; return the limit that is reached, or None."""
        progress, settings = self.progress, self._settings
        step = progress.step
        begins = 1 if self._job.is_new else 0
        is_time = step >= begins and step % settings.evaluation.eval_steps == 0
        if (is_time or self.limit()) and self._signals.received is None:
            self._evaluate()
            self._update_elapsed()
        limit = self.limit()
        asks = self._folder.save_now
        is_time = step > 0 and step % settings.training.save_steps == 0
        if is_time or limit or asks.exists() or self._signals.received is not None:
            self._save()
            asks.unlink(missing_ok=True)
        # Also at a limit: the evaluation that belongs to its end was left. A signal that has come after
        # the question above waits for the next step.
        if self._signals.received is not None and self._saved_step == step:
            raise self._signals.interruption(f"after step {step}; it is saved.", is_saved=True)
        return limit

    def _update_elapsed(self) -> None:
        self.progress.elapsed_seconds = self._elapsed_before + time.monotonic() - self._started

    def _way_on(self) -> str:
        """Return what can be done about a run that has diverged."""
        newest = next(iter(list_checkpoints(self._folder.checkpoints)), None)
        start = "Start again with a lower training.learning_rate, or more training.warmup_steps"
        if newest is None:
            return f"{start}. No checkpoint had been saved."
        return (
            f"{start}; or, if it is a bad batch, continue from {newest} with --resume and "
            "--set training.skip_bad_steps=N."
        )

    def _evaluate(self) -> None:
        progress, step = self.progress, self.progress.step
        if progress.evaluated_step == step:
            return
        try:
            with uncompiled(bool(self._settings.runtime.compile)):
                evaluation = self._evaluation()
            if evaluation is not None and not _is_finite(evaluation.scores):
                raise Diverged(
                    f"The held-out loss after step {step} is {evaluation.scores['loss']:g}: "
                    "training has diverged."
                )
            samples = self._samples()
        except InterruptedRun:
            return  # This step is evaluated when the run goes on.
        if evaluation is not None:
            self._note_evaluation(evaluation)
        if samples:
            progress.evaluated_step = step
            self._metrics.append({"step": step, "samples": [asdict(sample) for sample in samples]})
            self._notify(Sampled(step, samples))

    def _note_evaluation(self, evaluation: Evaluation) -> None:
        progress, step, scores = self.progress, self.progress.step, evaluation.scores
        is_best = progress.best is None or self._rank(scores) > self._rank(progress.best)
        progress.evaluated_step = step
        progress.last_evaluation_loss = scores["loss"]
        progress.evaluations_since_best = 0 if is_best else progress.evaluations_since_best + 1
        if is_best:
            progress.best = {"step": step, **scores}
            self._job.save_model(self._folder.model)
        self._metrics.append(
            {
                "step": step,
                **scores,
                **evaluation.details,
                "tokens": progress.tokens,
                "split": "validation",
            }
        )
        self._notify(Evaluated(step, scores, evaluation.details, is_best))

    def _samples(self) -> list[Sample]:
        """Return what the model writes now; nothing if no prompts are set."""
        if self._job.write_samples is None:
            return []
        try:
            with uncompiled(bool(self._settings.runtime.compile)):
                return self._job.write_samples(self._before_parts_of("writing samples"))
        except ModelError as error:  # Scores that are not finite, without held-out data to tell it.
            raise Diverged(
                f"After step {self.progress.step} the model cannot write: training has diverged."
            ) from error

    def _rank(self, scores: dict[str, float]) -> tuple[float, float]:
        """Return what is larger for the better of two evaluations."""
        score = scores[self._job.task.best_by]
        return (-score if self._job.task.best_by == "loss" else score, -scores["loss"])

    def _before_parts_of(self, what: str) -> Callable[[], None]:
        """Return what some work is to call before each of its parts: it looks for signals, and says how
        far the work is.
        """
        done, total = 0, self._parts.pop(what, None)

        def before_part() -> None:
            nonlocal done
            self._signals.raise_if_received()
            self._notify(Working(what, done, total))
            done += 1
            self._parts[what] = done

        return before_part

    def _evaluation(self) -> Evaluation | None:
        while True:
            try:
                return self._job.task.evaluate(
                    self._model, self.progress.micro_batch_size, self._before_parts_of("evaluating")
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                halve_micro_batch(self.progress, error)
                self._parts.pop("evaluating", None)  # It was left in the middle.
            self._notify(MicroBatchHalved(self.progress.micro_batch_size))

    def _save(self) -> None:
        """Save this step, if that is not done yet, and drop the checkpoints that are not kept."""
        if self._saved_step == self.progress.step:
            self._rotate()  # A kill may have come before it, and the best may be another one since.
            return
        self._notify(Working("saving", 0, None))
        self._metrics.flush()  # A checkpoint that survives a power cut has its lines.
        self._trackers.flush()
        path = save_checkpoint(
            self._folder.checkpoints, self._model, self._optimizers, self.progress, self._origin
        )
        self._saved_step = self.progress.step
        self._rotate()
        self._notify(Saved(path))

    def _rotate(self) -> None:
        """Remove the checkpoints that the settings and the best evaluation do not ask to keep."""
        assert self._saved_step is not None
        best_step = int(self.progress.best["step"]) if self.progress.best else None
        keep = self._settings.training.keep_checkpoints
        rotate_checkpoints(self._folder.checkpoints, self._saved_step, keep, best_step)

    def _log(self, done: StepDone) -> None:
        log_steps = self._settings.logging.log_steps
        if done.step % log_steps == 0 or done.step == self._settings.training.max_steps:
            self._metrics.append(
                {
                    "step": done.step,
                    "tokens": self.progress.tokens,
                    "loss": done.loss,
                    "lr": done.learning_rate,
                    "grad_norm": done.grad_norm,
                    "tokens_per_second": round(done.tokens / done.seconds, 1),
                }
            )

    def _tracked_run(self) -> TrackedRun:
        """Return what trackers are told of this run, known again by what its run.json says."""
        known = self._folder.read_facts().get("tracking_id")
        return TrackedRun(
            folder=self._folder,
            tracking_id=known if isinstance(known, str) else secrets.token_hex(4),
            is_known=isinstance(known, str),
            step=self.progress.step,
            settings=self._settings,
        )

    def _write_start(self, tracked: TrackedRun) -> None:
        """Write run.json, config.yaml and data.json."""
        self._facts = {
            "command": sys.argv,
            "working_directory": str(Path.cwd()),
            "task": self._settings.task,
            "parameters": count_parameters(self._model),
            "trained_parameters": count_trained_parameters(self._model),
            "fingerprints": {"data": self._origin.data, "tokenizer": self._origin.tokenizer},
            **self._job.facts,
            **({"tracking_id": tracked.tracking_id} if tracked.is_known or self._trackers else {}),
            "versions": self._origin.versions,
            "hardware": {
                "platform": platform.platform(),
                "cpu": _cpu_name(),
                "device": str(self._compute.device),
                "device_reason": self._compute.device_reason,
                "precision": self._compute.precision,
                "precision_reason": self._compute.precision_reason,
                "cpu_threads": torch.get_num_threads(),
            },
            "started": _now(),
            "started_at_step": self.progress.step,
        }
        self._write_end("running")
        write_text(self._folder.config, dump_settings(self._settings))
        write_text(
            self._folder.ledger, json.dumps(self._job.ledger, indent=2, ensure_ascii=False) + "\n"
        )

    def _write_end(self, ended: str, problem: str | None = None) -> None:
        """Write run.json: what the run is, how far it came, how it ended and on which problem."""
        progress = self.progress
        outcome = {
            "ended": ended,
            **({"problem": problem} if problem else {}),
            "updated": _now(),
            "step": progress.step,
            "tokens": progress.tokens,
            "micro_batch_size": progress.micro_batch_size,
            "steps_skipped": progress.steps_skipped,
            "training_seconds": round(progress.training_seconds, 3),
            "elapsed_seconds": round(progress.elapsed_seconds, 3),
            "best_evaluation": progress.best,
        }
        text = json.dumps({**self._facts, **outcome}, indent=2, ensure_ascii=False)
        write_text(self._folder.run, text + "\n")


def _cpu_name() -> str:
    with suppress(OSError):  # Linux alone has it.
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _is_finite(scores: dict[str, float]) -> bool:
    return all(math.isfinite(score) for score in scores.values())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def library_versions() -> dict[str, str]:
    """Return the versions that decide how numbers are rounded."""
    return {
        "gptcli": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def with_decisions_of(checkpoint: Path, settings: Settings) -> Settings:
    """Return the settings, with what the run of this checkpoint had decided where they leave it open.

    A changed limit would perhaps decide otherwise, and other kernels round otherwise.
    """
    if settings.runtime.compile is not None:
        return settings
    decided = read_state(checkpoint).origin.settings["runtime"].get("compile")
    runtime = settings.runtime.model_copy(update={"compile": decided})
    return settings.model_copy(update={"runtime": runtime})


def check_settings_match(checkpoint: Path, settings: Settings, *, is_complete: bool = True) -> None:
    """Raise ConfigError for each setting that would make the rest of the run another run.

    is_complete: whether model and data have filled in what was not set.
    """
    flat_before = _flatten(read_state(checkpoint).origin.settings)
    flat_now = _flatten(settings.model_dump(mode="json"))
    # A setting that is younger than the checkpoint had no other value then.
    defaults = _flatten(Settings().model_dump(mode="json"))
    flat_before |= {name: defaults.get(name) for name in flat_now.keys() - flat_before.keys()}
    problems = [
        f"{checkpoint} was trained with {name} {flat_before.get(name)!r}; it is now "
        f"{flat_now.get(name)!r}. Resume with the old value, or start another run."
        for name in sorted(flat_before.keys() | flat_now.keys())
        if flat_before.get(name) != flat_now.get(name)
        and not name.startswith(HARMLESS_ON_RESUME)
        and (is_complete or flat_now.get(name) is not None)
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
