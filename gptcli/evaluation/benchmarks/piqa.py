"""PIQA: which of two ways to reach a goal in the physical world works.

Bisk et al. 2020 (https://arxiv.org/abs/1911.11641).
"""

from __future__ import annotations

from typing import Any

from gptcli.evaluation.benchmarks.benchmark import (
    Benchmark,
    HubRows,
    Item,
    each_row,
    number_in,
    text_in,
)


def to_item(values: dict[str, Any], where: str) -> Item:
    solutions = [text_in(values, name, where) for name in ("sol1", "sol2")]
    context = f"Question: {text_in(values, 'goal', where)}\nAnswer:"
    return Item.of_choices(where, context, solutions, number_in(values, "label", where, 2))


PIQA = Benchmark(
    "piqa",
    "which of two ways to reach a goal works",
    each_row(to_item),
    "normalized accuracy",
    ("*piqa*",),
    HubRows("baber/piqa", "validation"),
)
