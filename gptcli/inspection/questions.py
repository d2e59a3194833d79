"""Questions whose answers do not fit their texts, or the model's windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptcli.inspection.findings import Finding


def window_findings(ledger: Mapping[str, Any], questions: int, context_length: int) -> Iterator[Finding]:
    """Yield which questions are cut; texts never are, but may need several windows.

    questions: of both splits. ledger: of question answering.
    """
    lost, several = ledger["too_long"], ledger["questions_in_several_windows"]
    count, what = (lost["cut"], "cut") if lost["cut"] else (lost["dropped"], "dropped")
    windows = (
        f"the texts of {several:,} are longer than the context of {context_length:,} tokens and are "
        "read in several windows"
    )
    if not count:
        yield Finding("ok", "length", f"none of {questions:,} questions is cut; {windows}")
        return
    yield Finding(
        "warning",
        "length",
        f"{count:,} of {questions:,} questions are longer than half of the context and are {what}: "
        f"{lost['tokens_lost']:,} tokens are lost; {windows}",
        advice="A larger model.context_length keeps more, if the model has it; else shorten them.",
    )


def question_findings(ledger: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is to be said of the answers. ledger: of question answering."""
    repaired, lost = ledger["answers_repaired"], ledger["answers_dropped"]
    cut, left_out = ledger["answers_cut_by_every_window"], ledger["questions_left_out"]
    if lost:
        yield Finding(
            "problem" if left_out else "warning",
            "answers",
            f"{lost:,} answers do not occur in their context and are dropped; {left_out:,} questions "
            "are left out for it",
            advice="An answer must be copied from the context, letter for letter.",
        )
    if repaired:
        yield Finding(
            "warning",
            "answers",
            f"{repaired:,} answers are not where answer_start says; the nearest place with their text "
            "is taken",
            advice="answer_start counts characters, not bytes, from 0.",
        )
    if cut:
        yield Finding(
            "warning",
            "answers",
            f"{cut:,} training questions are left out, as no window has the whole of their answer",
            advice="A larger model.context_length or data.stride keeps them.",
        )
    if not (lost or repaired or cut):
        yield Finding("ok", "answers", "every answer is where it is said to be, and whole in a window")
