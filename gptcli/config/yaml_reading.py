"""Read YAML as people expect it, with the line of every key.

Plain scalars follow the core schema of YAML 1.2, so `1e-4` is a number and `no` is a word (a language
code, for one). Duplicate keys, tags and aliases are refused: no config needs them, and each has been
used to surprise or to attack.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 20

KeyPath = tuple[str, ...]

# Underscores between digits, as in Python: 1_000_000.
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(_[0-9]+)*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# What only an escape such as "\0" can write, and what no path and no UTF-8 text can hold.
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class YamlProblem(Exception):
    """What is wrong, and on which line (1-based)."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def parse_yaml(text: str, repeated: list[YamlProblem] | None = None) -> tuple[Any, dict[KeyPath, int]]:
    """Return the value of the one document in `text`, and the line of every key in it.

    repeated: gets the keys that are set twice, if given; the first value counts then.
    Raises YamlProblem.
    """
    if len(text) > MAX_BYTES:
        raise YamlProblem(1, f"it has over {MAX_BYTES:,} characters, too many for a config")
    try:
        _refuse_what_no_config_needs(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise YamlProblem(line, f"it is not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise YamlProblem(1, f"it is not valid YAML: {str(error).splitlines()[0]}") from error
    except (ValueError, OverflowError) as error:
        # PyYAML takes "\UFFFFFFFF" for a character, and any number for a version.
        raise YamlProblem(1, "it is not valid YAML: a character or version that cannot be") from error
    lines: dict[KeyPath, int] = {}
    value = None if node is None else _value_of(node, (), lines, repeated)
    return value, lines


def parse_scalar(text: str) -> Any:
    """Return the value of a plain (unquoted) scalar: null, boolean, number or text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) < 100:
        return int(text)
    if _FLOAT.fullmatch(text) and len(text) < 100:
        return float(text)
    if _INFINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def _refuse_what_no_config_needs(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlProblem(line, "anchors and aliases (&, *) are not allowed; write the value out")
        if tag := getattr(event, "tag", None):
            raise YamlProblem(line, f"the tag {tag} is not allowed; write the plain value")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlProblem(line, f"it is nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _value_of(
    node: yaml.Node,
    path: KeyPath,
    lines: dict[KeyPath, int],
    repeated: list[YamlProblem] | None,
) -> Any:
    if isinstance(node, yaml.ScalarNode):
        text = _text_of(node)
        return parse_scalar(text) if node.style is None else text
    if isinstance(node, yaml.SequenceNode):
        return [_value_of(item, path, lines, repeated) for item in node.value]
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlProblem(line, "a key must be a word")
        key = _text_of(key_node)
        key_path = (*path, key)
        if key in mapping:
            name = ".".join(key_path)
            problem = YamlProblem(line, f"{name} is set twice, first on line {lines[key_path]}")
            if repeated is None:
                raise problem
            repeated.append(problem)
            continue
        lines[key_path] = line
        mapping[key] = _value_of(value_node, key_path, lines, repeated)
    return mapping


def _text_of(node: yaml.ScalarNode) -> str:
    text: str = node.value
    if _NO_TEXT.search(text):
        line = node.start_mark.line + 1
        raise YamlProblem(line, "it holds NUL or half a surrogate pair, which no text can hold")
    return text
