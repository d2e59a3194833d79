"""BLiMP: which of two sentences that differ in a word or two is grammatical, by phenomenon.

Warstadt et al. 2020 (https://arxiv.org/abs/1912.00582). A space stands before a sentence, as in
EleutherAI's harness.
"""

from __future__ import annotations

from typing import Any

from gptcli.evaluation.benchmarks.benchmark import Benchmark, HubRows, Item, each_row, text_in


def to_item(values: dict[str, Any], where: str) -> Item:
    sentences = [text_in(values, name, where) for name in ("sentence_good", "sentence_bad")]
    return Item.of_choices(where, "", sentences, 0, group=str(values.get("UID") or ""))


BLIMP = Benchmark(
    "blimp",
    "which of two sentences is grammatical, by phenomenon",
    each_row(to_item),
    "accuracy",
    ("*blimp*/*.jsonl", "*blimp*.jsonl"),
    HubRows("nyu-mll/blimp", "train", subset="*"),
)
