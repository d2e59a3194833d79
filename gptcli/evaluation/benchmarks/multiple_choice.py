"""A test of one's own: rows of any columns, with settings that say which of them are what."""

from __future__ import annotations

import string
from typing import Any

from gptcli.config.schema import EvaluationSettings
from gptcli.errors import ConfigError, DataError
from gptcli.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    each_row,
    number_in,
    text_in,
    texts_in,
)

NAME = "multiple_choice"


def own_test(settings: EvaluationSettings) -> Benchmark:
    """Return the benchmark that the settings describe. Raises ConfigError for a prompt that is none."""
    try:
        parts = list(string.Formatter().parse(settings.prompt))
    except ValueError as error:
        raise ConfigError(
            f"evaluation.prompt is {settings.prompt!r:.60}: {error}. Write a literal {{ as {{{{."
        ) from None
    if any(form or conversion for _, _, form, conversion in parts):
        raise ConfigError(
            f"evaluation.prompt is {settings.prompt!r:.60}; within {{}} it takes the name of a column "
            "and nothing else."
        )

    def to_item(values: dict[str, Any], where: str) -> Item:
        context = "".join(
            before if name is None else before + _filled(values, name, where)
            for before, name, _, _ in parts
        )
        if isinstance(settings.choices, str):
            choices = texts_in(values, settings.choices, where)
        else:
            choices = [text_in(values, name, where) for name in settings.choices]
        return Item.of_choices(where, context, choices, _gold(values, choices, settings, where))

    return Benchmark(NAME, "your own test", each_row(to_item), "normalized accuracy", ())


def _filled(values: dict[str, Any], name: str, where: str) -> str:
    if name not in values:
        listed = ", ".join(map(str, values)) or "none"
        raise DataError(
            f"{where} has no column {name!r} (evaluation.prompt); its columns are: {listed}."
        )
    return str(values[name])


def _gold(values: dict[str, Any], choices: list[str], settings: EvaluationSettings, where: str) -> int:
    value = values.get(settings.gold)
    if isinstance(value, str):
        if value in choices:
            return choices.index(value)
        letters = string.ascii_uppercase[: len(choices)]
        if len(value) == 1 and value.upper() in letters:
            return letters.index(value.upper())
    return number_in(values, settings.gold, where, len(choices), first=settings.first_number)
