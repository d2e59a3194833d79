"""`gptcli config validate`: is a config right?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptcli import console
from gptcli.commands.options import Assignments
from gptcli.errors import ConfigError

if TYPE_CHECKING:
    from gptcli.config.loading import ResolvedSettings


def validate(
    files: list[Path] | None = typer.Argument(None, metavar="FILE", help="YAML files."),
    config: Path | None = typer.Option(None, "--config", "-c", help="The same as FILE."),
    assignments: Assignments = [],
    as_json: bool = typer.Option(False, "--json", help="Print JSON, one object a file."),
) -> None:
    """Check configs: all problems at once, each with its line, and exit code 2 if there are any.

    The environment and --set are checked with them, as a run would have them. That data is missing is
    only a warning: its path is relative to the folder in which a run is started.

    Examples:
      gptcli config validate configs/pretrain/demo.yaml
      gptcli config validate configs/pretrain/*.yaml --json
    """
    from gptcli.config.loading import resolve_settings

    paths = [*(files or []), *([config] if config else [])]
    if not paths:
        raise ConfigError("Give the config to check: gptcli config validate FILE.")
    all_problems = []
    for path in paths:
        problems: list[str] = []
        warnings: list[str] = []
        counts: dict[str, int] = {}
        try:
            resolved = resolve_settings(path, assignments)
        except ConfigError as error:
            problems = str(error).splitlines()
        else:
            warnings = _missing_data(resolved)
            counts = resolved.count_by_layer()
        all_problems += problems
        for warning in warnings:
            console.warn(warning)
        if as_json:
            console.write_json(
                {
                    "config": str(path),
                    "ok": not problems,
                    "settings": counts,
                    "problems": problems,
                    "warnings": warnings,
                }
            )
        elif not problems:
            console.write_result(f"{path} is fine: {_summary(counts)}.")
    if all_problems:
        # What the environment or --set does wrong is so with every file.
        raise ConfigError(*dict.fromkeys(all_problems))


def _summary(counts: dict[str, int]) -> str:
    from gptcli.config.layers import DEFAULT, ENVIRONMENT, FILE, SET

    others = ((ENVIRONMENT, "the environment"), (SET, "--set"))
    changed = [f"{counts[layer]} by {name}" for layer, name in others if counts[layer]]
    parts = [f"{counts[FILE]} settings are set in it", *changed, f"{counts[DEFAULT]} have their default"]
    return ", ".join(parts)


def _missing_data(resolved: ResolvedSettings) -> list[str]:
    """Return a line for each path in the settings at which there is nothing."""
    from gptcli.data.sources import missing_paths

    data = resolved.settings.data
    return [
        f"{resolved.origin(name)}: {name}: {path} is not there, seen from {Path.cwd()}."
        for name, source in (
            ("data.source", data.source),
            ("data.validation_source", data.validation_source),
        )
        for path in missing_paths(source or [])
    ]
