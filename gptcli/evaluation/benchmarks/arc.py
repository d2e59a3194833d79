"""ARC: questions of American science exams, the easy ones and those that word counting fails.

Clark et al. 2018 (https://arxiv.org/abs/1803.05457). Rows as the hub has them (question, choices and
answerKey), as AllenAI published them (question: {stem, choices}), or as query, choices and gold.
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


def to_item(values: dict[str, Any], where: str) -> Item:
    if "query" in values:
        choices = texts_in(values, "choices", where)
        gold = number_in(values, "gold", where, len(choices))
        return Item.of_choices(where, f"{text_in(values, 'query', where)}\nAnswer:", choices, gold)
    question: Any = values.get("question")
    found: Any = values.get("choices")
    if isinstance(question, dict):
        question, found = question.get("stem"), question.get("choices")
    if isinstance(found, list) and all(isinstance(choice, dict) for choice in found):
        found = {key: [choice[key] for choice in found if key in choice] for key in ("text", "label")}
    row = {"question": question, **(found if isinstance(found, dict) else {"text": found})}
    choices = texts_in(row, "text", where)
    labels, key = row.get("label"), values.get("answerKey")
    if not isinstance(labels, list) or len(labels) != len(choices) or key not in labels:
        raise DataError(f"{where}: answerKey is {key!r:.20}; the choices are labelled {labels!r:.60}.")
    context = f"Question: {text_in(row, 'question', where)}\nAnswer:"
    return Item.of_choices(where, context, choices, labels.index(key))


def _benchmark(name: str, about: str, subset: str) -> Benchmark:
    return Benchmark(
        name,
        about,
        each_row(to_item),
        "normalized accuracy",
        (f"*{name}*", f"*{subset}*"),
        HubRows("allenai/ai2_arc", "test", subset),
    )


ARC_EASY = _benchmark("arc_easy", "questions of science exams", "ARC-Easy")
ARC_CHALLENGE = _benchmark("arc_challenge", "the harder questions of science exams", "ARC-Challenge")
