"""Runs that were made: which there are, what each is, how they differ, and their pages. No torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config.loading import flat_values, load_settings
from gptcli.config.schema import Settings
from gptcli.errors import ConfigError, ModelError
from gptcli.files import write_text
from gptcli.training.run_folder import RunFolder
from gptcli.training.run_record import RunRecord, find_run


@dataclass(frozen=True)
class RunList:
    """The runs of a folder, the newest first."""

    runs: list[RunRecord]
    damaged: list[tuple[Path, str]]
    """Folders that hold a run of which run.json tells nothing, and why."""


@dataclass(frozen=True)
class Difference:
    """What is not the same for all of the runs that are compared."""

    name: str
    values: list[Any]
    """One a run."""


@dataclass(frozen=True)
class RunComparison:
    """How runs differ."""

    runs: list[RunRecord]
    names: list[str]
    """What tells them apart: their names, or their paths if two have one name."""
    settings: list[Difference]
    """By setting; empty if the config of a run cannot be read."""
    unreadable: list[Path]
    """Configs that cannot be read."""
    provenance: list[Difference]
    """Fingerprints of data and tokenizer, versions, device and precision."""
    scores: list[Difference]
    """Of the best evaluation: all, also those that are the same."""

    @property
    def notes(self) -> list[str]:
        """What a person should know of the scores."""
        differing = {one.name for one in self.provenance}
        if sum(run.facts.best_evaluation is not None for run in self.runs) < 2:
            return []
        if "data fingerprint" in differing:
            return [
                "the data differ, so these are scores of different held-out examples. gptcli eval "
                "--compare tests two runs on the same."
            ]
        if "tokenizer fingerprint" in differing and "bits_per_byte" in {one.name for one in self.scores}:
            return ["the tokenizers differ, so of these scores only bits per byte can be compared."]
        return []


def list_runs(folder: Path) -> RunList:
    """Return the runs in a folder, or the one that it is; what is no run is passed over.

    Raises ConfigError if there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder. Runs are in the folders that --output-dir named.")
    runs, damaged = [], []
    for path in [folder] if _holds_run(folder) else sorted(folder.iterdir()):
        if not _holds_run(path):
            continue
        try:
            runs.append(RunRecord(path))
        except (ConfigError, ModelError) as error:
            damaged.append((path, str(error)))
    runs.sort(key=lambda run: run.facts.updated, reverse=True)
    return RunList(runs, damaged)


def describe_run(run: RunRecord) -> dict[str, Any]:
    """Return what is to be known of a run, as JSON."""
    facts = run.facts
    return {
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "reason": run.reason,
        **facts.model_dump(mode="json"),
        "model": str(run.folder.model) if run.folder.model.is_dir() else None,
        "report": str(run.folder.report) if run.folder.report.is_file() else None,
    }


def compare_runs(names: Sequence[str]) -> RunComparison:
    """Return how two runs or more differ. Raises ConfigError, ModelError for what is no whole run."""
    if len(names) < 2:
        raise ConfigError("runs compare takes two runs or more.")
    runs = [find_run(name) for name in names]
    labels = [run.name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [os.path.normpath(run.path) for run in runs]
    if len(set(labels)) < len(labels):
        raise ConfigError("runs compare: the same run is given twice.")
    settings = [run.settings for run in runs]
    return RunComparison(
        runs,
        labels,
        _different([_used_values(s) for s in settings if s is not None])
        if all(s is not None for s in settings)
        else [],
        [run.folder.config for run in runs if run.settings is None],
        _different([_provenance(run) for run in runs]),
        _all_scores(runs),
    )


def write_report(run: RunRecord, output: Path | None) -> Path:
    """Write the report of a run into its folder, or to `output`, and return where it is."""
    from gptcli.reports.run_page import run_page

    return _write_page(run_page(run), output or run.folder.report)


def write_comparison(comparison: RunComparison, output: Path) -> Path:
    """Write the page of a comparison and return where it is."""
    from gptcli.reports.comparison_page import comparison_page

    page = comparison_page(
        comparison.runs,
        comparison.names,
        scores=[(found.name, found.values) for found in comparison.scores],
        notes=comparison.notes,
        settings=[(found.name, found.values) for found in comparison.settings],
        provenance=[(found.name, found.values) for found in comparison.provenance],
    )
    return _write_page(page, output)


def settings_to_rerun(run: RunRecord) -> Settings:
    """Return the settings of a run as it had them. Raises ConfigError if they cannot be read."""
    return load_settings(run.folder.config, environment={})


def folder_for_rerun(run: RunRecord) -> Path:
    """Return the first of NAME-2, NAME-3, ... beside the run that is not there."""
    path = run.path.resolve()
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    found = next(other for other in numbered if not other.exists())
    return run.path.with_name(found.name) if run.path.name == path.name else found


def _holds_run(path: Path) -> bool:
    try:
        return RunFolder(path).run.exists()
    except OSError:  # A folder of somebody else.
        return False


def _write_page(page: str, path: Path) -> Path:
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--output {path}: it must be a file in a folder that is there.")
    write_text(path, page)
    return path


def _used_values(settings: Settings) -> dict[str, Any]:
    """Return the settings by name; None for those of a tokenizer where the model brings its own."""
    has_tokenizer = settings.model.name is not None
    return {
        name: None if has_tokenizer and name.startswith("tokenizer.") else value
        for name, value in flat_values(settings).items()
    }


def _provenance(run: RunRecord) -> dict[str, Any]:
    facts = run.facts
    return {
        **{f"{name} fingerprint": value for name, value in facts.fingerprints.items()},
        **facts.versions,
        **{name: facts.hardware.get(name) for name in ("device", "precision", "cpu", "cpu_threads")},
    }


def _all_scores(runs: list[RunRecord]) -> list[Difference]:
    scores = [run.facts.best_evaluation or {} for run in runs]
    names = dict.fromkeys(name for of_run in scores for name in of_run)
    return [Difference(name, [of_run.get(name) for of_run in scores]) for name in names]


def _different(values: list[dict[str, Any]]) -> list[Difference]:
    """Return what is not the same in all of the mappings."""
    names = dict.fromkeys(name for mapping in values for name in mapping)
    found = [Difference(name, [mapping.get(name) for mapping in values]) for name in names]
    return [one for one in found if any(value != one.values[0] for value in one.values)]
