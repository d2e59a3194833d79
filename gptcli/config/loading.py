"""Settings from their layers: defaults < the YAML file < the environment < `--set section.key=value`."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gptcli.config.layers import DEFAULT, ENVIRONMENT, FILE, OPTION, SET, Layers, Origin
from gptcli.config.names import FOREIGN_NAMES, nearest_setting, setting_names, variable_name
from gptcli.config.schema import Settings
from gptcli.config.yaml_reading import KeyPath, parse_scalar
from gptcli.errors import ConfigError

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "finite_number": "a finite number",
    "string_too_short": "text that is not empty",
}
_SHAPE = {"n_layer", "n_head", "n_embd", "context_length"}


@dataclass(frozen=True)
class ResolvedSettings:
    """Settings, and where each was set."""

    settings: Settings
    _origins: dict[KeyPath, Origin]

    def origin(self, name: str) -> Origin:
        """Return where `section.key` was set. What model.size brings with it has the origin of that."""
        path = tuple(name.split("."))
        size = self._origins.get(("model", "size"))
        if path in self._origins:
            return self._origins[path]
        if size is not None and path[0] == "model" and path[-1] in _SHAPE:
            return size
        return Origin(DEFAULT, DEFAULT)

    def count_by_layer(self) -> dict[str, int]:
        """Return how many settings have their value from each layer."""
        counts = dict.fromkeys((DEFAULT, FILE, ENVIRONMENT, SET, OPTION), 0)
        for name in setting_names():
            origin = self._origins.get(tuple(name.split(".")))
            counts[origin.layer if origin else DEFAULT] += 1
        return counts


def load_settings(
    config: Path | None,
    assignments: Sequence[str] = (),
    sections: dict[str, Any] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """Return the settings of `config` (defaults if None), changed by `GPTCLI_SECTION__KEY` variables
    and then by each `section.key=value`.

    sections: values of a command's own options, as nested mappings; they win over all others, but None,
    an option that was not given, over none.
    Raises ConfigError with one line for every problem found.
    """
    return resolve_settings(config, assignments, sections, environment=environment).settings


def resolve_settings(
    config: Path | None,
    assignments: Sequence[str] = (),
    sections: dict[str, Any] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> ResolvedSettings:
    """Return the same settings with their origins."""
    layers = Layers()
    if config is not None:
        layers.add_file(config)
    layers.add_environment(environment)
    for assignment in assignments:
        layers.add_assignment(assignment)
    for section, options in (sections or {}).items():
        for key, value in options.items():
            if value is not None:
                layers.add_option((section, key), value)
    problems = list(layers.problems)
    try:
        settings = Settings.model_validate(layers.values)
    except ValidationError as error:
        fallback = Origin(FILE, str(config)) if config else Origin(DEFAULT, "settings")
        for problem in [*error.errors(), *_hidden_problems(layers.values, error.errors())]:
            origin = _origin_of(problem, layers.origins) or fallback
            problems.append((origin, _describe(problem, origin)))
    if problems:
        # By line, as the file is read; then what the other layers set.
        problems.sort(key=lambda problem: (problem[0].layer != FILE, problem[0].line))
        raise ConfigError(*dict.fromkeys(line for _, line in problems))
    return ResolvedSettings(settings, layers.origins)


def setting_values(settings: Settings) -> dict[str, Any]:
    """Return `settings` as nested values that `load_settings` takes."""
    values = settings.model_dump(mode="json")
    if settings.training.epochs is not None or settings.training.tokens_per_parameter is not None:
        del values["training"]["max_steps"]  # The default, which the two together would refuse.
    return values


def flat_values(settings: Settings) -> dict[str, Any]:
    """Return {"section.key": value} of every setting; None for those of a section that is not set."""
    values, flat = settings.model_dump(mode="json"), {}
    for name in setting_names():
        value: Any = values
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        flat[name] = value
    return flat


def dump_settings(settings: Settings) -> str:
    """Return `settings` as YAML that `load_settings` reads back to the same settings."""
    return yaml.dump(setting_values(settings), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_value(value: object) -> str:
    """Return the value of a setting as YAML on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, allow_unicode=True, default_flow_style=True, width=1e9, sort_keys=False
    )
    return text.removesuffix("\n...\n").rstrip("\n")


class _Dumper(yaml.SafeDumper):
    """Quotes text that would not read back: 1e3, a number to our reader only, and control characters."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    is_plain = isinstance(parse_scalar(text), str) and text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def _hidden_problems(values: dict[str, Any], found: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return problems between settings that only show once the wrong ones in `found` are left out."""
    rest = copy.deepcopy(values)
    wrong = [(problem["loc"][:-1], key) for problem in found if (key := _remove(rest, problem["loc"]))]
    try:
        Settings.model_validate(rest)
    except ValidationError as error:
        return [problem for problem in error.errors() if not _speaks_of(wrong, problem)]
    return []


def _speaks_of(wrong: list[tuple[tuple[str | int, ...], str]], problem: ErrorDetails) -> bool:
    """Return whether a problem of a section names a setting that was left out of it.

    What is said then is of its default, which is not what was meant.
    """
    words = set(re.findall(r"\w+", problem["msg"]))
    return any(section == problem["loc"] and key in words for section, key in wrong)


def _remove(values: dict[str, Any], location: tuple[str | int, ...]) -> str | None:
    """Remove the setting at `location` and return its key; None, removing nothing, for a section."""
    target = values
    for key in location:
        value = target.get(str(key))
        if not isinstance(value, dict):
            target.pop(str(key), None)
            return str(key)
        target = value
    return None


def _origin_of(problem: ErrorDetails, origins: dict[KeyPath, Origin]) -> Origin | None:
    path = tuple(str(part) for part in problem["loc"])
    return next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)


def _describe(problem: ErrorDetails, origin: Origin) -> str:
    """Return one line for a pydantic error: where, the setting, its value, what it must be."""
    path = tuple(str(part) for part in problem["loc"])
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{origin}: {name} is not a setting.{_suggestion(path, origin)}"
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        return f"{origin}: {name}: {problem['ctx']['error']}."
    return f"{origin}: {name} is {wrong_value(problem)}"


def wrong_value(problem: ErrorDetails) -> str:
    """Return the end of a sentence on a pydantic error: the value, and what it must be."""
    value = problem["input"]
    context = problem.get("ctx", {})
    match problem["type"]:
        case "value_error":
            return f"{_shown(value)}; {context['error']}."
        case "literal_error":
            return f"{_shown(value)}; it must be {context['expected']}."
        case "greater_than":
            expected = f"more than {context['gt']:,.10g}"
        case "greater_than_equal":
            expected = f"at least {context['ge']:,.10g}"
        case "less_than":
            expected = f"less than {context['lt']:,.10g}"
        case "less_than_equal":
            expected = f"at most {context['le']:,.10g}"
        case "model_type" | "model_attributes_type" | "dict_type":
            expected = "a section with settings under it"
        case kind:
            expected = _EXPECTED.get(kind, problem["msg"])
    return f"{_shown(value)}; it must be {expected}."


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value!r}"
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(path: KeyPath, origin: Origin) -> str:
    name = nearest_setting(path)
    if name is None:
        return " `docs/configuration.md` lists them all."
    if origin.layer == ENVIRONMENT and not name.startswith("--"):
        name = variable_name(name)
    return f" Use {name} instead." if path[-1] in FOREIGN_NAMES else f" Did you mean {name}?"
