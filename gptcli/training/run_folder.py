"""The run folder: what is where, and when it may be written to."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import ConfigError, EnvironmentProblem
from gptcli.training.checkpoint import list_checkpoints, remove_old_checkpoints


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

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Raise ConfigError unless a run may be written here; EnvironmentProblem if it cannot."""
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other.")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; --output-dir takes a folder.")
        try:
            is_used = self.path.is_dir() and any(self.path.iterdir())
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentProblem(f"{self.path} cannot be written: {error.strerror}.") from error
        if not os.access(self.path, os.W_OK):
            raise EnvironmentProblem(f"{self.path} cannot be written: permission denied.")
        if not is_used:
            return
        if not resume and not overwrite:
            raise ConfigError(
                f"{self.path} is not empty. Continue its run with --resume, replace it with "
                "--overwrite, or choose another --output-dir."
            )
        # Not config.yaml, which a folder of other things may well have.
        if not self.run.is_file():
            raise ConfigError(
                f"{self.path} is not empty and holds no run (no run.json); it is left alone. "
                "Choose another --output-dir."
            )

    def clear(self) -> None:
        """Remove the run, and nothing that is not a run's."""
        if self.checkpoints.is_dir():
            remove_old_checkpoints(self.checkpoints, keep=0)
            assert not list_checkpoints(self.checkpoints)
        if self.model.is_dir() and not self.model.is_symlink():
            shutil.rmtree(self.model)
        for file in (self.config, self.ledger, self.metrics, self.run):
            file.unlink(missing_ok=True)
