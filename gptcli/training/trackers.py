"""Trackers: TensorBoard, Weights & Biases and trackio, which draw a run while it goes on.

They get what metrics.jsonl gets, under the same names, through their own libraries. The run folder is
whole without them, so one that fails is left behind with a warning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol

from gptcli.config.loading import dump_settings
from gptcli.config.schema import LoggingSettings, Settings, TrackerName
from gptcli.errors import EnvironmentProblem
from gptcli.hub import first_line
from gptcli.training.run_folder import RunFolder

PROJECT = "gptcli"
"""Where runs are filed, if neither logging.project nor the tracker's own variable says otherwise."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it begins, or goes on."""

    folder: RunFolder
    tracking_id: str
    """By which a run that goes on is known again."""
    is_known: bool
    """Whether trackers have seen it before."""
    step: int
    """After which it goes on. What was tracked of later steps is done again."""
    settings: Settings

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name


class Tracker(Protocol):
    """One that draws a run. Whatever it raises is dealt with by `Trackers`."""

    name: TrackerName

    def begin(self, run: TrackedRun) -> None: ...

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def show_samples(self, step: int, samples: list[dict[str, str]]) -> None:
        """samples: each with its "prompt" and its "text"."""

    def flush(self) -> None:
        """Have on the disk what a killed process would lose; a checkpoint is saved next."""

    def end(self, *, is_finished: bool) -> None:
        """is_finished: whether a limit has ended the run, and not a signal or a problem."""


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir runs`."""

    name: TrackerName = "tensorboard"

    def __init__(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer_type = SummaryWriter

    def begin(self, run: TrackedRun) -> None:
        # TensorBoard drops the events from this step on that earlier files have.
        purge_step = run.step + 1 if run.is_known else None
        self._writer = self._writer_type(str(run.folder.tensorboard), purge_step=purge_step)
        if not run.is_known:
            self._writer.add_text("settings", _as_code(dump_settings(run.settings)), 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show_samples(self, step: int, samples: list[dict[str, str]]) -> None:
        for number, sample in enumerate(samples, start=1):
            text = f"{_as_code(sample['prompt'])}\n\n---\n\n{_as_code(sample['text'])}"
            self._writer.add_text(f"samples/{number}", text, step)

    def flush(self) -> None:
        self._writer.flush()

    def end(self, *, is_finished: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """wandb. Its own variables hold, such as WANDB_MODE=offline; its files are in the run folder."""

    name: TrackerName = "wandb"

    def __init__(self, project: str | None) -> None:
        """Asks for the API key on a terminal that knows none."""
        import wandb

        self._library = wandb
        self._project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        wandb.login()

    def begin(self, run: TrackedRun) -> None:
        self._run = self._library.init(
            project=self._project,
            name=run.name,
            id=run.tracking_id,
            resume="allow",
            dir=str(run.folder.path),
            config=run.settings.model_dump(mode="json"),
            # Else it reads along what the terminal shows.
            settings=self._library.Settings(console="off"),
        )
        # Steps that a resumed run does again would be refused if they were its own steps.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def show_samples(self, step: int, samples: list[dict[str, str]]) -> None:
        rows = [[step, sample["prompt"], sample["text"]] for sample in samples]
        table = self._library.Table(columns=["step", "prompt", "text"], data=rows)
        self._run.log({"step": step, "samples": table})

    def flush(self) -> None:
        """A process of its own has taken each line."""

    def end(self, *, is_finished: bool) -> None:
        self._run.finish(exit_code=0 if is_finished else 1)


class Trackio:
    """trackio, on this machine: `trackio show`. Its own variables hold."""

    name: TrackerName = "trackio"

    def __init__(self, project: str | None) -> None:
        import trackio

        self._library = trackio
        self._project = project or PROJECT

    def begin(self, run: TrackedRun) -> None:
        self._run = self._library.init(
            project=self._project,
            # It knows runs by their names.
            name=f"{run.name}-{run.tracking_id}",
            resume="allow",
            config=run.settings.model_dump(mode="json"),
            embed=False,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def show_samples(self, step: int, samples: list[dict[str, str]]) -> None:
        import pandas

        self._run.log({"samples": self._library.Table(dataframe=pandas.DataFrame(samples))}, step=step)

    def flush(self) -> None:
        """A thread writes all that is there twice a second."""

    def end(self, *, is_finished: bool) -> None:
        # By the run itself, it would be finished once more when Python ends, and stdout told so.
        self._library.finish()


def load_trackers(settings: LoggingSettings) -> list[Tracker]:
    """Return the trackers that the settings ask for, their libraries loaded.

    Raises EnvironmentProblem for a library that is missing or does not load.
    """
    return [_load_tracker(name, settings.project) for name in settings.trackers]


def _load_tracker(name: TrackerName, project: str | None) -> Tracker:
    try:
        with _own_stdout():
            match name:
                case "tensorboard":
                    return TensorBoard()
                case "wandb":
                    return WeightsAndBiases(project)
                case "trackio":
                    return Trackio(project)
    except ModuleNotFoundError:
        raise EnvironmentProblem(
            f'logging.trackers: {name} needs its package: pip install "gptcli[{name}]".'
        ) from None
    except Exception as error:
        raise _cannot_begin(name, error) from error


class Trackers:
    """The trackers of a run. One that fails is left behind with a warning; the run goes on."""

    def __init__(self, trackers: list[Tracker], warn: Callable[[str], None]) -> None:
        self._trackers = trackers
        self._warn = warn

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def begin(self, run: TrackedRun) -> None:
        """Raises EnvironmentProblem for a tracker that fails before the first step of a run, when it
        can still be mended. A run that goes on goes on without it: a scheduler may have resumed it.
        """
        for tracker in list(self._trackers):
            try:
                with _own_stdout():
                    tracker.begin(run)
            except Exception as error:
                if run.step == 0:
                    raise _cannot_begin(tracker.name, error) from error
                self._leave_behind(tracker, error)

    def log(self, entry: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl. Scores of an evaluation have its split before their names."""
        step = entry["step"]
        if "samples" in entry:
            self._each(lambda tracker: tracker.show_samples(step, entry["samples"]))
        elif values := _numbers(entry):
            self._each(lambda tracker: tracker.log(step, values))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def end(self, *, is_finished: bool) -> None:
        self._each(lambda tracker: tracker.end(is_finished=is_finished))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                with _own_stdout():
                    act(tracker)
            except Exception as error:
                self._leave_behind(tracker, error)

    def _leave_behind(self, tracker: Tracker, error: Exception) -> None:
        self._trackers.remove(tracker)
        self._warn(
            f"{tracker.name} has failed, and training goes on without it: {_sentence(error)} "
            "metrics.jsonl has all."
        )


@contextmanager
def _own_stdout() -> Iterator[None]:
    """Keep stdout for our results: what the libraries print goes to stderr."""
    with redirect_stdout(sys.stderr):
        yield


def _cannot_begin(name: TrackerName, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"logging.trackers: {name} cannot begin: {_sentence(error)} Mend it, or train without: "
        "--set logging.trackers=[]."
    )


def _sentence(error: Exception) -> str:
    return first_line(error).rstrip(".") + "."


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    """Return what can be drawn of a line of metrics.jsonl, by name."""
    prefix = f"{entry['split']}/" if "split" in entry else ""
    # That of an evaluation is the same as that of the step before it.
    left_out = {"step", "tokens"} if prefix else {"step"}
    return {
        prefix + name: value
        for name, value in entry.items()
        if name not in left_out and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _as_code(text: str) -> str:
    """Return Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
