"""The layers that settings come from: a file, the environment, --set, the options of a command.

Each layer changes the values of the ones before it and notes where a value came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config.names import VARIABLE_PREFIX, setting_names, setting_of_variable, variable_name
from gptcli.config.yaml_reading import MAX_BYTES, KeyPath, YamlProblem, parse_yaml
from gptcli.errors import ConfigError

DEFAULT, FILE, ENVIRONMENT, SET, OPTION = "default", "file", "environment", "--set", "option"

# Settings that leave no room for others: set by a stronger layer, they drop those of the weaker ones.
_DROPS: dict[KeyPath, tuple[str, ...]] = {
    ("tokenizer", "name"): ("train",),
    ("tokenizer", "train"): ("name",),
    ("model", "name"): ("size", "n_layer", "n_head", "n_embd"),
    ("model", "size"): ("name", "n_layer", "n_head", "n_embd", "context_length"),
    ("training", "epochs"): ("max_steps", "tokens_per_parameter"),
    ("training", "max_steps"): ("epochs", "tokens_per_parameter"),
    ("training", "tokens_per_parameter"): ("max_steps", "epochs"),
    ("generation", "max_new_tokens"): ("max_length",),
    ("generation", "max_length"): ("max_new_tokens",),
}

# `model: small` is short for `model: {size: small}`.
_SHORT_FORMS = {"model": "size", "tokenizer": "name"}


@dataclass(frozen=True)
class Origin:
    """Where a setting was set: the layer, and the place in it as people look it up."""

    layer: str
    place: str
    line: int = 0
    """In the file."""

    def __str__(self) -> str:
        return self.place

    def describe(self) -> str:
        """Return the place with what it is, if that does not tell."""
        return f"environment: {self.place}" if self.layer == ENVIRONMENT else self.place


class Layers:
    """Values from the layers that were added so far, weakest first, and the origin of each key.

    What is wrong in a layer without being a wrong value is in `problems`, with its origin.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[KeyPath, Origin] = {}
        self.problems: list[tuple[Origin, str]] = []

    def add_file(self, config: Path) -> None:
        """Raises ConfigError for what cannot be read as a config at all."""
        text = _text_of(config)
        repeated: list[YamlProblem] = []
        try:
            values, lines = parse_yaml(text, repeated)
        except YamlProblem as problem:
            raise ConfigError(f"{config}:{problem.line}: {problem.message}.") from problem
        if values is None:
            return
        if not isinstance(values, dict):
            raise ConfigError(f"{config}:1: a config is a mapping of sections, such as `training:`.")
        for key in repeated:
            place = f"{config}:{key.line}"
            self.problems.append((Origin(FILE, place, key.line), f"{place}: {key.message}."))
        self.origins = {path: Origin(FILE, f"{config}:{line}", line) for path, line in lines.items()}
        for section, value in values.items():
            # A section whose settings are all commented out is an empty one.
            self.values[section] = {} if value is None else self._long_form((section,), value)

    def add_environment(self, environment: Mapping[str, str]) -> None:
        """Add what GPTCLI_SECTION__KEY variables set; other variables of gptcli are left alone."""
        flat_names = None
        for variable in sorted(name for name in environment if name.startswith(VARIABLE_PREFIX)):
            origin = Origin(ENVIRONMENT, variable)
            path = setting_of_variable(variable)
            if path is not None:
                self._add_text(path, environment[variable], origin)
                continue
            if flat_names is None:
                names = map(variable_name, setting_names())
                flat_names = {name.replace("__", "_"): name for name in names}
            if variable.upper() in flat_names:
                meant = flat_names[variable.upper()]
                self._report(origin, f"it sets nothing. Use {meant}, with two underscores")

    def add_assignment(self, assignment: str) -> None:
        """Add `section.key=value` of --set."""
        origin = Origin(SET, f"--set {assignment}")
        name, equals, text = assignment.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            self._report(origin, "write it as section.key=value")
        else:
            self._add_text(path, text, origin)

    def add_option(self, path: KeyPath, value: object) -> None:
        """Add the value of a command's own option."""
        self._add(path, value, Origin(OPTION, "--" + path[-1].replace("_", "-")), {})

    def _add_text(self, path: KeyPath, text: str, origin: Origin) -> None:
        try:
            value, lines = parse_yaml(text)
        except YamlProblem as problem:
            self._report(origin, problem.message)
        else:
            self._add(path, value, origin, lines)

    def _add(self, path: KeyPath, value: Any, origin: Origin, lines: Mapping[KeyPath, int]) -> None:
        """lines: has every key within `value`."""
        target = self.values
        for depth, key in enumerate(path[:-1], 1):
            within = target.get(key)
            if not isinstance(within, dict):
                if depth == 1 and key in target:
                    return  # A wrong value where a section should be; the schema will refuse it.
                within = target[key] = {}
            target = within
            self.origins.setdefault(path[:depth], origin)
        if value is not None:
            for name in _DROPS.get(path[:2], ()):
                weaker = self.origins.get((path[0], name))
                # Two options of one command line exclude each other; the schema will say so.
                if weaker is None or (weaker.layer, origin.layer) != (OPTION, OPTION):
                    self._drop((path[0], name))
        self._drop(path)
        self.origins[path] = origin
        self.origins |= dict.fromkeys(((*path, *key) for key in lines), origin)
        target[path[-1]] = self._long_form(path, value)

    def _drop(self, path: KeyPath) -> None:
        target: Any = self.values
        for key in path[:-1]:
            target = target[key]
        target.pop(path[-1], None)
        for other in [other for other in self.origins if other[: len(path)] == path]:
            del self.origins[other]

    def _long_form(self, path: KeyPath, value: Any) -> Any:
        """Return {"size": "small"} for `model: small`; what is no short form, as it is."""
        key = _SHORT_FORMS.get(path[0])
        if len(path) > 1 or key is None or not isinstance(value, str):
            return value
        self.origins[path[0], key] = self.origins[path]
        return {key: value}

    def _report(self, origin: Origin, problem: str) -> None:
        self.problems.append((origin, f"{origin}: {problem}."))


def _text_of(config: Path) -> str:
    try:
        with config.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # Not all of /dev/zero.
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{config}: it has over {MAX_BYTES:,} bytes, too many for a config.")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{config}: no such config file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{config} is a folder; --config takes a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{config} is not a text file: byte {error.start} is not UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{config} cannot be read: {error.strerror}.") from None
