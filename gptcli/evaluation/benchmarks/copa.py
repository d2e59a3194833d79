"""COPA: which of two events is the cause, or the effect, of another.

Roemmele et al. 2011; rows as in SuperGLUE, or as query, choices and gold. Two spaces stand before a
choice, as in EleutherAI's harness: its published scores are of that.
"""

from __future__ import annotations

from typing import Any

from gptcli.errors import DataError
from gptcli.evaluation.benchmarks.benchmark import (
    Benchmark,
    HubRows,
    Item,
    each_row,
    number_in,
    text_in,
    texts_in,
)

CONNECTORS = {"cause": "because", "effect": "therefore"}


def to_item(values: dict[str, Any], where: str) -> Item:
    if "query" in values:
        choices = [f" {choice}" for choice in texts_in(values, "choices", where)]
        gold = number_in(values, "gold", where, len(choices))
        return Item.of_choices(where, text_in(values, "query", where), choices, gold)
    asked = values.get("question")
    if asked not in list(CONNECTORS):
        raise DataError(f"{where}: question is {asked!r:.20}; it must be cause or effect.")
    context = f"{text_in(values, 'premise', where).strip()[:-1]} {CONNECTORS[asked]}"
    choices = [text_in(values, name, where) for name in ("choice1", "choice2")]
    choices = [f" {choice[0].lower()}{choice[1:]}" for choice in choices]
    return Item.of_choices(where, context, choices, number_in(values, "label", where, 2))


COPA = Benchmark(
    "copa",
    "which of two events is the cause, or the effect, of another",
    each_row(to_item),
    "accuracy",
    ("*copa*",),
    HubRows("aps/super_glue", "validation", "copa"),
)
