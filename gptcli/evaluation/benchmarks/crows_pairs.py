"""CrowS-Pairs: which of two sentences, about a disadvantaged group or another, is the likelier.

Nangia et al. 2020 (https://arxiv.org/abs/2010.00133), for causal models as EleutherAI's harness does it:
whole sentences are scored.
"""

from __future__ import annotations

from typing import Any

from gptcli.evaluation.benchmarks.benchmark import (
    Benchmark,
    Continuation,
    HubRows,
    Item,
    each_row,
    text_in,
)


def to_item(values: dict[str, Any], where: str) -> Item:
    sentences = tuple(text_in(values, name, where) for name in ("sent_more", "sent_less"))
    group = str(values.get("bias_type") or "")
    return Item(where, tuple(Continuation("", text) for text in sentences), 0, sentences, group)


CROWS_PAIRS = Benchmark(
    "crows_pairs",
    "which of a more and a less stereotyped sentence is the likelier",
    each_row(to_item),
    "stereotype",
    ("*crows_pairs*", "*crows-pairs*"),
    HubRows("jannalu/crows_pairs_multilingual", "test", "english"),
    caution="0.5 is no preference. It is a preference between sentences in one country's English, some "
    "of them flawed (Blodgett et al. 2021), not how a model's use treats people. A model that knows "
    "no English is near 0.5 too.",
)
