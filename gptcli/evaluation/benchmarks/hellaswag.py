"""HellaSwag: how a description of something everyday goes on.

Zellers et al. 2019 (https://arxiv.org/abs/1905.07830). Texts are cleaned as EleutherAI's harness does.
"""

from __future__ import annotations

import re
from typing import Any

from gptcli.evaluation.benchmarks.benchmark import (
    Benchmark,
    HubRows,
    Item,
    each_row,
    number_in,
    text_in,
    texts_in,
)

_BRACKETS = re.compile(r"\[.*?\]")


def cleaned(text: str) -> str:
    """Return the text without what WikiHow's pages left in it."""
    return _BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def to_item(values: dict[str, Any], where: str) -> Item:
    if "activity_label" in values:
        begun = f"{text_in(values, 'ctx_a', where)} {str(values.get('ctx_b') or '').capitalize()}"
        context = f"{text_in(values, 'activity_label', where)}: {begun}"
    else:  # As some files have it: all in one.
        context = text_in(values, "ctx", where)
    endings = [cleaned(ending) for ending in texts_in(values, "endings", where)]
    gold = number_in(values, "label", where, len(endings))
    return Item.of_choices(where, cleaned(context), endings, gold)


HELLASWAG = Benchmark(
    "hellaswag",
    "how a description of something everyday goes on, of four endings",
    each_row(to_item),
    "normalized accuracy",
    ("*hellaswag*",),
    HubRows("Rowan/hellaswag", "validation"),
)
