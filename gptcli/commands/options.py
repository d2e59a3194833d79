"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptcli.errors import ConfigError


def complete_setting(incomplete: str) -> list[str]:
    """Return the beginnings of all assignments: what a shell completes --set by."""
    from gptcli.config.names import setting_names

    return [f"{name}=" for name in setting_names() if name.startswith(incomplete)]


Assignments = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change a setting; may be repeated.",
        autocompletion=complete_setting,
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str | None, typer.Option("--precision", help="auto, fp32, bf16, fp16 or int8.")]

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name in runs/.")]
ConfigArgument = Annotated[Path | None, typer.Argument(metavar="FILE", help="YAML file.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The same as FILE.")]


def label_names(option: str | None) -> list[str] | None:
    """Return the labels of --labels A,B,...; None without it. Raises ConfigError for what is no list."""
    if option is None:
        return None
    names = [name.strip() for name in option.split(",")]
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"--labels is {option!r}; it must be two or more different labels: A,B,...")
    return names
