"""Training, from scratch or not, for any task: settings in, a run folder with a model out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gptcli.config.schema import Settings
from gptcli.data.progress import PreparationProgress
from gptcli.files import WORTH_A_BAR, write_text
from gptcli.pipelines.plan import facts_of_job
from gptcli.planning.plan import Plan, make_plan
from gptcli.tasks.table import build_job
from gptcli.training.checkpoint import newest_whole
from gptcli.training.device import Compute, choose_compute
from gptcli.training.job import DataSize, Job, count_parameters, count_trained_parameters
from gptcli.training.loop import Progress
from gptcli.training.run import (
    Note,
    TrainingEvent,
    TrainingRun,
    check_settings_match,
    library_versions,
    with_decisions_of,
)
from gptcli.training.run_folder import RunFolder
from gptcli.training.run_record import RunRecord
from gptcli.training.stopping import StopSignals
from gptcli.training.trackers import Trackers, load_trackers


@dataclass(frozen=True)
class DataReport:
    """What is known of model and data before training: (what, how much), for people."""

    facts: list[tuple[str, str]]


Event = PreparationProgress | DataReport | TrainingEvent
Notify = Callable[[Event], None]


@dataclass(frozen=True)
class TrainingResult:
    """How a run, or a dry run, ended."""

    run: str
    model: str | None
    """None for a dry run."""
    ended: str
    """"dry run", or "finished: LIMIT" or "already finished: LIMIT" with the setting that ended it."""
    limit: float | None
    """The value of that setting."""
    step: int
    parameters: int
    """Of the model."""
    trained_parameters: int
    """Those that are not frozen, and those of adapters."""
    train: DataSize
    validation: DataSize
    epochs: float
    """How often the run has gone (a dry run: would go) through the training data."""
    steps_skipped: int
    """Of the steps, those whose update was left out: training.skip_bad_steps."""
    training_seconds: float
    evaluation: dict[str, float] | None
    """The best evaluation: its step, and the scores of the task."""
    plan: Plan | None = None
    """Of a dry run: what the run would need."""


def run_training(
    settings: Settings,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    repeats: RunRecord | None = None,
    notify: Notify = lambda event: None,
    signals: StopSignals | None = None,
) -> TrainingResult:
    """Train a GPT-2 into `output_dir`; with `dry_run`, do all but train and write a run.

    repeats: a run that this one is to repeat; what is no longer as it was is said. signals: what asks to
    stop; none if not given. Raises a GptcliError for anything that the user can
    mend, before training wherever that is possible, and InterruptedRun, with all saved, when a signal
    asks to stop.
    """
    folder = RunFolder(output_dir)
    signals = signals or StopSignals()

    def notify_and_look(event: Event) -> None:
        notify(event)
        signals.raise_if_received()

    def build() -> tuple[Job, Compute]:
        compute = choose_compute(settings.runtime, for_training=True)
        notify(Note(f"Device: {compute.describe()}."))
        job = build_job(settings, compute, notify_and_look)
        notify(DataReport(job.summary))
        notify(Note(f"torch.compile: {job.facts['compiled']}."))
        for change in [] if repeats is None else _changes_since(repeats, job):
            notify(Note(change, is_warning=True))
        return job, compute

    def looked_at(done: int, total: int) -> None:
        if total > WORTH_A_BAR:
            notify_and_look(PreparationProgress("checking the checkpoint", done, total))

    signals.raise_if_received()
    trackers = Trackers(
        load_trackers(settings.logging), lambda text: notify(Note(text, is_warning=True))
    )
    if dry_run:
        job, compute = build()
        plan = make_plan(facts_of_job(job, compute))
        return replace(_result(folder, job, Progress(), "dry run"), plan=plan)
    with folder.lock():
        folder.check(resume=resume, overwrite=overwrite)
        checkpoint, warnings = newest_whole(folder.checkpoints, looked_at) if resume else (None, [])
        for warning in warnings:
            notify(Note(warning, is_warning=True))
        if checkpoint is not None:
            # Before the data is read; what only the data decides, afterwards.
            check_settings_match(checkpoint, settings, is_complete=False)
            settings = with_decisions_of(checkpoint, settings)
        job, compute = build()
        run = TrainingRun(job, folder, compute, signals, notify, trackers)
        if checkpoint is not None:
            check_settings_match(checkpoint, job.settings)
            run.resume(checkpoint)
            limit, facts = run.limit(), folder.read_facts()
            if limit and facts.get("ended") == f"finished: {limit}":
                # The last evaluation may have been made after this checkpoint was saved.
                run.progress.best = facts.get("best_evaluation")
                if not folder.report.exists():  # A kill came between the two.
                    _write_report(folder, notify)
                return _result(folder, job, run.progress, f"already finished: {limit}")
            notify(Note(f"Resuming from {checkpoint}."))
        elif resume:
            notify(Note("There is no checkpoint yet; starting at step 0."))
        if overwrite:
            folder.clear()
        run.check_disk_space()
        signals.raise_if_received()
        try:
            limit = run.run()
        except Exception:
            _write_report(folder, notify)
            trackers.end(is_finished=False)
            raise
        _write_report(folder, notify)
        trackers.end(is_finished=True)
        return _result(folder, job, run.progress, f"finished: {limit}")


def _changes_since(before: RunRecord, job: Job) -> list[str]:
    """Return what makes a repetition of a run another one."""
    facts = before.facts
    now = {"data": job.data_fingerprint, "tokenizer": job.tokenizer_fingerprint}
    changes = [
        f"The {what} is not what {before.path} was trained on; this run will differ."
        for what, fingerprint in now.items()
        if facts.fingerprints.get(what) != fingerprint
    ]
    versions = [
        f"{name} was {facts.versions.get(name)} and is {version}"
        for name, version in library_versions().items()
        if facts.versions.get(name) != version
    ]
    if versions:
        changes.append(f"{', '.join(versions)}: numbers may differ in the last digits.")
    return changes


def _write_report(folder: RunFolder, notify: Notify) -> None:
    """Write report.html. That it cannot be drawn is no failure of the run."""
    if not folder.run.is_file():
        return
    try:
        from gptcli.reports.run_page import run_page

        write_text(folder.report, run_page(RunRecord(folder.path)))
    except Exception as error:
        notify(
            Note(
                f"{folder.report} is not written: {error} "
                f"`gptcli runs report {folder.path}` tries again.",
                is_warning=True,
            )
        )


def _result(folder: RunFolder, job: Job, progress: Progress, ended: str) -> TrainingResult:
    is_dry = ended == "dry run"
    training = job.settings.training
    steps = training.max_steps if is_dry else progress.step
    limit = ended.rpartition("training.")[2]
    return TrainingResult(
        run=str(folder.path),
        model=None if is_dry else str(folder.model),
        ended=ended,
        limit=None if is_dry else getattr(training, limit),
        step=progress.step,
        parameters=count_parameters(job.model),
        trained_parameters=count_trained_parameters(job.model),
        train=job.train,
        validation=job.validation,
        epochs=steps / job.steps_per_epoch,
        steps_skipped=progress.steps_skipped,
        training_seconds=progress.training_seconds,
        evaluation=progress.best,
    )
