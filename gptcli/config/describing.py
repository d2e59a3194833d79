"""The settings as a page for people, made from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gptcli.config.loading import section_type
from gptcli.config.schema import NAMED_SIZES, Settings


def describe_settings() -> str:
    """Return a Markdown page: a table a section, a row a setting with default, bounds and meaning."""
    lines = [
        "# Configuration",
        "",
        "A config is one YAML file with the sections below; every setting has a default, so a config",
        "holds only what differs. `--set section.key=value` changes a setting for one run.",
        "",
        "Numbers may be written as `0.0001`, `1e-4` or `1_000_000`. "
        "Unknown and duplicate keys are errors.",
        "",
        "`task` is `language-modelling`, `classification`, `question-answering` or `instruction`.",
        "",
    ]
    for name, field in Settings.model_fields.items():
        section = section_type(field.annotation)
        if section is None:
            continue
        lines += [f"## `{name}`", "", (section.__doc__ or "").strip().split("\n\n")[0], ""]
        lines += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
        lines += _rows(section, name)
        if name == "model":
            lines += ["", "Named sizes:", "", *_sizes()]
        lines.append("")
    return "\n".join(lines)


def _rows(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in section.model_fields.items():
        name = f"{prefix}.{key}"
        inner = section_type(field.annotation)
        if inner is not None:
            yield from _rows(inner, name)
            continue
        meaning = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {_default(field)} | {_allowed(field)} | {meaning} |"


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "not set"
    if isinstance(field.default, float) and 0 < field.default < 0.001:
        return f"`{field.default:.0e}`".replace("e-0", "e-")
    return f"`{field.default}`"


def _allowed(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        listed = ", ".join(f"`{choice}`" for choice in choices)
        takes_numbers = int in getattr(field.annotation, "__args__", ())
        return f"{listed} or a whole number" if takes_numbers else listed
    words = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
    bounds = [
        f"{word} {_number(getattr(item, attribute))}"
        for attribute, word in words.items()
        for item in field.metadata
        if hasattr(item, attribute)
    ]
    return ", ".join(bounds)


def _number(value: float) -> str:
    return f"{value:,}"


def _choices(annotation: Any) -> list[str]:
    """Return the values of a Literal, also within a union with None."""
    found: list[str] = []
    for item in getattr(annotation, "__args__", ()):
        if isinstance(item, str):
            found.append(item)
        elif item is not type(None):
            found += _choices(item)
    return found


def _sizes() -> Iterator[str]:
    yield "| size | `n_layer` | `n_head` | `n_embd` | `context_length` |"
    yield "|---|---|---|---|---|"
    for name, shape in NAMED_SIZES.items():
        yield f"| `{name}` | " + " | ".join(map(str, shape)) + " |"
