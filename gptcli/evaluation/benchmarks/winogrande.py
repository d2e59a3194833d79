"""WinoGrande: which of two names a blank stands for.

Sakaguchi et al. 2019 (https://arxiv.org/abs/1907.10641). What follows the blank is scored behind each of
the names (partial evaluation: Trinh and Le 2018, https://arxiv.org/abs/1806.02847).
"""

from __future__ import annotations

from typing import Any

from gptcli.errors import DataError
from gptcli.evaluation.benchmarks.benchmark import (
    Benchmark,
    Continuation,
    HubRows,
    Item,
    each_row,
    number_in,
    text_in,
)


def to_item(values: dict[str, Any], where: str) -> Item:
    sentence = text_in(values, "sentence", where)
    before, blank, after = sentence.partition("_")
    if not blank or not after.strip():
        raise DataError(f"{where}: the sentence {sentence!r:.60} has no blank _ with text behind it.")
    options = tuple(text_in(values, name, where) for name in ("option1", "option2"))
    continuations = tuple(Continuation(before + option, f" {after.strip()}") for option in options)
    return Item(where, continuations, number_in(values, "answer", where, 2, first=1), options)


WINOGRANDE = Benchmark(
    "winogrande",
    "which of two names a blank stands for",
    each_row(to_item),
    "accuracy",
    ("*winogrande*",),
    HubRows("allenai/winogrande", "validation", "winogrande_xl"),
)
