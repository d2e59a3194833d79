"""The settings as a page for people, made from the schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gptcli.config.names import section_type
from gptcli.config.schema import NAMED_SIZES, Settings

HEAD = """\
# Configuration

A config is one YAML file with the sections below; every setting has a default, so a config
holds only what differs. `gptcli config init TASK` writes one to start from.

Numbers may be written as `0.0001`, `1e-4` or `1_000_000`. Unknown and duplicate keys are errors.

`task` is `language-modelling`, `classification`, `question-answering` or `instruction`.

## Where a value comes from

Each of these wins over those below it:

| layer | example |
|---|---|
| an option of the command | `--seed 7` |
| `--set section.key=value`, for one run | `--set runtime.seed=7` |
| a variable `GPTCLI_SECTION__KEY`, for a machine or a job | `GPTCLI_RUNTIME__SEED=7` |
| the file | `runtime: {seed: 7}` |
| the default | 42 |

Two underscores go one level down: `GPTCLI_TRAINING__LORA__RANK=8` sets `training.lora.rank`. The value
of a variable or of `--set` is read as YAML: `GPTCLI_DATA__SOURCE='[a.txt, b.txt]'` is a list. Every
command that reads settings reads them from all layers. A variable that is nearly the name of a setting
is an error, not overlooked; `GPTCLI_DEBUG=1`, which shows the traceback of an error, is no setting.

Where two settings exclude each other, the one of the stronger layer stays: `--set training.epochs=3`
takes the place of `max_steps` in the file.

`gptcli config show FILE` prints all settings as a run would have them, each with where it comes from,
and `gptcli config validate FILE` all problems at once.

## In an editor

Editors with yaml-language-server (VS Code's YAML extension, Neovim, Helix, ...) complete and check a
config whose first line names the schema, a path from the config:

```yaml
# yaml-language-server: $schema=gptcli.schema.json
```

`gptcli config init TASK --output FILE` writes the schema beside the file; `gptcli config schema` prints
it.
"""


def describe_settings() -> str:
    """Return a Markdown page: a table a section, a row a setting with default, bounds and meaning."""
    lines = [HEAD]
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
    found = choices(field.annotation)
    if found:
        listed = ", ".join(f"`{choice}`" for choice in found)
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


def choices(annotation: Any) -> list[str]:
    """Return the values of a Literal, also within a union with None."""
    found: list[str] = []
    for item in getattr(annotation, "__args__", ()):
        if isinstance(item, str):
            found.append(item)
        elif item is not type(None):
            found += choices(item)
    return found


def _sizes() -> Iterator[str]:
    yield "| size | `n_layer` | `n_head` | `n_embd` | `context_length` |"
    yield "|---|---|---|---|---|"
    for name, shape in NAMED_SIZES.items():
        yield f"| `{name}` | " + " | ".join(map(str, shape)) + " |"
