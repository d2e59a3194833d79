"""The run folder: what is where, and when it may be written to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import ConfigError, EnvironmentProblem
from gptcli.files import partial_path, remove_tree

LOCK = ".lock"


def config_of_run(model: str) -> Path | None:
    """Return the config.yaml of the run that `model` is; None if it is none."""
    try:
        folder = RunFolder(Path(model).expanduser())
    except RuntimeError:  # ~name of a user who does not exist.
        return None
    return folder.config if folder.run.is_file() and folder.config.is_file() else None


@dataclass(frozen=True)
class RunFolder:
    """runs/NAME and the names in it."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def run(self) -> Path:
        """Written first and removed last: a folder with it holds a run."""
        return self.path / "run.json"

    @property
    def ledger(self) -> Path:
        return self.path / "data.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        """A page that is made of the files above, and can be made again."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        """Event files, if logging.trackers asks for them."""
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """What Weights & Biases sends, or will, if logging.trackers asks for it."""
        return self.path / "wandb"

    @property
    def save_now(self) -> Path:
        """Touching this file asks for a checkpoint after the current step."""
        return self.path / "save-now"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes here. The system lifts the lock when the process ends.

        Makes the folder. Raises ConfigError for a folder of other things, EnvironmentProblem if another
        process has it or it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; --output-dir takes a folder.")
        try:
            names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
            # A folder of other things may well have a config.yaml and a model/.
            if names and not names & {LOCK, self.run.name}:
                raise ConfigError(
                    f"{self.path} is not empty and holds no run (no run.json); it is left alone. "
                    "Choose another --output-dir."
                )
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be written: {error.strerror}.") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EnvironmentProblem(
                    f"{self.path} is in use by another gptcli process. Wait for it, or choose another "
                    "--output-dir."
                ) from None
            yield
        finally:
            os.close(descriptor)

    def is_in_use(self) -> bool:
        """Whether a process is writing here."""
        try:
            descriptor = os.open(self.path / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # A file system that has no locks.
            return False
        finally:
            os.close(descriptor)
        return False

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise ConfigError unless a run may be written here, as the options say."""
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other.")
        for folder in (self.checkpoints, self.model, self.tensorboard, self.wandb):
            if folder.is_symlink():
                raise ConfigError(
                    f"{folder} is a link, and what it leads to may be somebody else's. Remove it, or "
                    "choose another --output-dir."
                )
        is_used = any(path.name != LOCK for path in self.path.iterdir())
        if is_used and not resume and not overwrite:
            raise ConfigError(
                f"{self.path} is not empty. Continue its run with --resume, replace it with "
                "--overwrite, or choose another --output-dir."
            )

    def read_facts(self) -> dict[str, Any]:
        """Return what run.json says; nothing if it cannot be read."""
        try:
            facts = json.loads(self.run.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def remove_partial(self) -> None:
        """Remove what a killed process has left of what it was writing or removing."""
        from gptcli.training.checkpoint import remove_partial

        remove_partial(self.checkpoints)
        remove_tree(partial_path(self.model))

    def clear(self) -> None:
        """Remove the run, and nothing that is not a run's."""
        from gptcli.training.checkpoint import remove_all_checkpoints

        if self.checkpoints.is_dir():
            remove_all_checkpoints(self.checkpoints)
        for folder in (self.model, self.tensorboard, self.wandb):
            remove_tree(folder)
        self.remove_partial()
        for file in (self.report, self.config, self.ledger, self.metrics, self.run):
            file.unlink(missing_ok=True)
