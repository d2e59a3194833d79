"""What of an item is looked at, and what is compared."""

from __future__ import annotations

from gptcli.data.conversations import ConversationItem
from gptcli.data.labelled_texts import LabelledText
from gptcli.data.questions import Question
from gptcli.inspection.item_texts import compared_text, key_texts, texts_of
from gptcli.inspection.questions import question_findings, window_findings

LEDGER = {
    "answers_repaired": 0,
    "answers_dropped": 0,
    "answers_cut_by_every_window": 0,
    "questions_left_out": 0,
}


def test_all_texts_are_looked_at_and_inputs_are_compared() -> None:
    pair = LabelledText("", "one", "two", ("label",))
    question = Question("", "1", "title", "who?", "It is me.", (("me", 6),))
    talk = ConversationItem("", (("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v")))
    assert [texts_of(item) for item in (pair, question, talk)] == [
        ["one", "two"],
        ["who?", "It is me."],
        ["s", "u", "a", "v"],
    ]
    assert [key_texts(item) for item in (pair, question, talk)] == [
        ["one", "two"],
        ["who?", "It is me."],
        ["s", "u"],
    ]
    assert [compared_text(item) for item in (pair, question, talk)] == ["one\ntwo", "It is me.", "s\nu"]


def test_a_question_can_be_cut_but_its_text_is_read_in_several_windows() -> None:
    ledger = {"too_long": {"cut": 0, "dropped": 0, "tokens_lost": 0}, "questions_in_several_windows": 7}
    (fine,) = window_findings(ledger, 20, 64)
    assert (fine.level, fine.message) == (
        "ok",
        "none of 20 questions is cut; the texts of 7 are longer than the context of 64 tokens and are "
        "read in several windows",
    )
    (cut,) = window_findings({**ledger, "too_long": {"cut": 0, "dropped": 2, "tokens_lost": 90}}, 20, 64)
    assert cut.level == "warning"
    assert cut.message.startswith(
        "2 of 20 questions are longer than half of the context and are dropped: 90 tokens are lost; "
    )


def test_answers_that_do_not_fit_are_told() -> None:
    assert [finding.level for finding in question_findings(LEDGER)] == ["ok"]
    lost = {**LEDGER, "answers_dropped": 3, "questions_left_out": 2, "answers_repaired": 4}
    problem, warning = question_findings(lost)
    assert problem.message.startswith("3 answers do not occur in their context and are dropped; 2 ques")
    assert (problem.level, warning.level) == ("problem", "warning")
    assert warning.message.startswith("4 answers are not where answer_start says")
    (cut,) = question_findings({**LEDGER, "answers_cut_by_every_window": 1})
    assert cut.level == "warning"
