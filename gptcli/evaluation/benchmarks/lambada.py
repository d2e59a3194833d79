"""LAMBADA: the last word of a passage, which its last sentence alone does not tell.

Paperno et al. 2016 (https://arxiv.org/abs/1606.06031), in the form of OpenAI. The last word is what
stands behind the last space. Perplexity is that of the last words: exp of the mean over passages of
-log p(word).
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
    text_in,
)


def to_item(values: dict[str, Any], where: str) -> Item:
    text = text_in(values, "text", where)
    context, _, word = text.rpartition(" ")
    if not context.strip() or not word:
        raise DataError(f"{where}: the text {text!r:.60} has no last word behind a space.")
    return Item(where, (Continuation(context, f" {word}"),), 0, (word,))


LAMBADA = Benchmark(
    "lambada",
    "the last word of a passage",
    each_row(to_item),
    "last word",
    ("*lambada*",),
    HubRows("EleutherAI/lambada_openai", "test", "default"),
)
