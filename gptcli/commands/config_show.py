"""`gptcli config show`: what a config comes to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import typer

from gptcli import console
from gptcli.commands.options import Assignments, ConfigArgument, ConfigOption
from gptcli.errors import ConfigError

# Origins stand below each other up to here; after a longer value, where it ends.
MAX_COLUMN = 40


def show(
    file: ConfigArgument = None,
    config: ConfigOption = None,
    assignments: Assignments = [],
    as_json: bool = typer.Option(
        False, "--json", help="Print the settings and their origins as one JSON object."
    ),
) -> None:
    """Show every setting as a run would have it, and where its value comes from.

    That is a default, a line of the file, a variable of the environment (GPTCLI_SECTION__KEY) or --set;
    each wins over those before it. What is shown is a config itself.

    Examples:
      gptcli config show configs/pretrain/demo.yaml
      gptcli config show configs/pretrain/demo.yaml --set model=tiny --json
    """
    from gptcli.config.loading import dump_value, resolve_settings, setting_values
    from gptcli.config.names import setting_names

    if file is not None and config is not None:
        raise ConfigError("Give FILE or --config, not both.")
    path = file or config
    resolved = resolve_settings(path, assignments)
    values = setting_values(resolved.settings)
    lines = list(_lines(values, set(setting_names())))
    if as_json:
        origins = {
            name: asdict(resolved.origin(name)) for name, _, is_section in lines if not is_section
        }
        shown = None if path is None else str(path)
        console.write_json({"config": shown, "settings": values, "origins": origins})
        return
    rows = []
    for name, value, is_section in lines:
        indent, key = "  " * name.count("."), name.rpartition(".")[2]
        if is_section:
            rows.append((f"{indent}{key}:", ""))
        else:
            rows.append((f"{indent}{key}: {dump_value(value)}", resolved.origin(name).describe()))
    column = min(MAX_COLUMN, max(len(text) for text, _ in rows))
    for text, origin in rows:
        console.write_result(f"{text:<{column}}  # {origin}" if origin else text)


def _lines(
    values: dict[str, Any], settings: set[str], prefix: str = ""
) -> Iterator[tuple[str, Any, bool]]:
    """Yield (name, value, whether it is a section) of all that is in `values`, in order."""
    for key, value in values.items():
        name = prefix + key
        # The value of training.class_weights, too, can be a mapping.
        is_section = isinstance(value, dict) and name not in settings
        yield name, value, is_section
        if is_section:
            yield from _lines(value, settings, f"{name}.")
