"""Questions from the ways in which people write them down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.config.schema import DataSettings
from gptcli.data.ledger import Reading
from gptcli.data.questions import Question, Questions, place_of
from gptcli.data.sources import FileSource
from gptcli.errors import DataError

CAT = "The cat sat on the mat. The cat was happy."
OWL = "An owl 🦉 of 深圳 sat there."


def parse(
    file: Path, reader: Questions | None = None, **columns: str
) -> tuple[list[Question], Questions, Reading]:
    data = DataSettings.model_validate({"columns": columns})
    reader, reading = reader or Questions(), Reading()
    return list(reader.parse(FileSource(file), data, reading)), reader, reading


def rows(path: Path, *values: dict[str, Any]) -> Path:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in values))
    return file


def squad(path: Path, *paragraphs: dict[str, Any], title: str = "Cats") -> Path:
    file = path / "squad.json"
    article = {"title": title, "paragraphs": list(paragraphs)}
    file.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    return file


def row(answer: str | list[str], start: int | list[int], context: str = CAT) -> dict[str, Any]:
    answers = {
        "text": [answer] if isinstance(answer, str) else answer,
        "answer_start": [start] if isinstance(start, int) else start,
    }
    return {"question": "Who?", "context": context, "answers": answers}


def test_squad_is_read_question_by_question_with_its_article(tmp_path: Path) -> None:
    file = squad(
        tmp_path,
        {
            "context": CAT,
            "qas": [
                {
                    "id": "a",
                    "question": " Who sat? ",
                    "answers": [
                        {"text": "The cat", "answer_start": 0},
                        {"text": "cat", "answer_start": 28},
                    ],
                },
                {
                    "id": "b",
                    "question": "Who flew?",
                    "is_impossible": True,
                    "answers": [],
                    "plausible_answers": [{"text": "cat", "answer_start": 4}],
                },
            ],
        },
        {"context": OWL, "qas": [{"question": "Who?", "answers": [{"text": "🦉", "answer_start": 7}]}]},
    )
    questions, _, reading = parse(file)
    assert questions == [
        Question(
            f"{file}: item 1, paragraph 1, question 1",
            *("a", "Cats", "Who sat?", CAT),
            (("The cat", 0), ("cat", 28)),
        ),
        Question(f"{file}: item 1, paragraph 1, question 2", "b", "Cats", "Who flew?", CAT, ()),
        Question(f"{file}: item 1, paragraph 2, question 1", "3", "Cats", "Who?", OWL, (("🦉", 7),)),
    ]
    assert (reading.rows, reading.documents) == (3, 3)
    assert questions[0].context is questions[1].context  # Kept once, however many ask about it.


def test_rows_have_their_answers_in_several_shapes(tmp_path: Path) -> None:
    base = {"question": "Who?", "context": CAT}
    file = rows(
        tmp_path,
        {**base, "answers": {"text": ["cat", "mat"], "answer_start": [4, 19]}},
        {**base, "answers": [{"text": "cat", "answer_start": 28}]},
        {**base, "answers": ["cat"]},
        {**base, "answers": {"text": "cat", "answer_start": 28}},
        {**base, "answers": '{"text": ["cat"], "answer_start": [28]}'},
        {**base, "answers": "cat"},
        {**base, "answer": "cat", "answer_start": "28"},
        {**base, "answer": "cat", "answer_start": 28.0},
        {**base, "answers": {"text": [], "answer_start": []}},
        {**base, "answers": None},
        {**base, "answers": [""]},
        {**base, "answers": ["cat"], "is_impossible": True},
        {**base, "is_impossible": "true"},
    )
    questions, reader, _ = parse(file)
    assert [question.answers for question in questions] == [
        (("cat", 4), ("mat", 19)),
        (("cat", 28),),
        (("cat", 4),),
        *[(("cat", 28),)] * 2,
        (("cat", 4),),
        *[(("cat", 28),)] * 2,
        *[()] * 5,
    ]
    assert (reader.repaired, reader.dropped, reader.left_out) == (0, 0, 0)


def test_a_csv_file_of_other_column_names_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"id,q,text,a\nx1,Who?,{CAT},mat\n,Where?,{CAT},\n")
    questions, _, _ = parse(file, question="q", context="text", answers="a")
    assert [(q.id, q.question, q.answers) for q in questions] == [
        ("x1", "Who?", (("mat", 19),)),
        ("2", "Where?", ()),
    ]


@pytest.mark.parametrize(
    ("text", "start", "place"),
    [
        ("cat", 4, 4),
        ("cat", 28, 28),
        ("cat", 15, 4),  # 11 to the left, 13 to the right.
        ("cat", 17, 28),
        ("cat", -7, 4),
        ("cat", 999, 28),
        ("cat", None, 4),
        ("dog", 4, None),
        ("CAT", 4, None),
    ],
)
def test_an_answer_is_placed_where_it_occurs_nearest(
    text: str, start: int | None, place: int | None
) -> None:
    assert place_of(text, start, CAT) == place


def test_white_space_around_an_answer_is_none_of_it(tmp_path: Path) -> None:
    questions, reader, _ = parse(rows(tmp_path, row(" cat ", 3)))
    assert questions[0].answers == (("cat", 4),)
    assert reader.repaired == 0


def test_wrong_places_are_repaired_or_dropped_and_counted(tmp_path: Path) -> None:
    file = rows(
        tmp_path,
        row("mat", 3),  # Repaired.
        row(["dog", "mat"], [4, 19]),  # One of two is dropped.
        row("dog", 4),  # Its question is left out.
        # In UTF-16 units, as JavaScript counts, all after an emoji is one further.
        row("深圳", 13, OWL),
    )
    questions, reader, _ = parse(file)
    assert [question.answers for question in questions] == [
        (("mat", 19),),
        (("mat", 19),),
        (("深圳", 12),),
    ]
    assert (reader.repaired, reader.dropped, reader.left_out) == (2, 2, 1)


def test_answers_that_are_never_in_their_context_are_refused(tmp_path: Path) -> None:
    file = rows(tmp_path, row("dog", 4), row("owl", 9))
    with pytest.raises(DataError) as raised:
        parse(file)
    assert str(raised.value) == (
        f"{file}:1: the answer 'dog' is not in its context, and so it is with all 2 questions: answers "
        "must be copied from the context, letter for letter."
    )


def test_questions_without_text_are_left_out_and_counted(tmp_path: Path) -> None:
    file = rows(
        tmp_path,
        {**row("cat", 4), "question": " "},
        {**row("cat", 4), "context": None},
        row("cat", 4),
    )
    questions, _, reading = parse(file)
    assert (len(questions), reading.rows, reading.empty_documents_dropped) == (1, 3, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"frage": "Wer?", "context": CAT, "answers": "cat"},
            ":1 has no column 'question'; its columns are: frage, context, answers. Set "
            "data.columns.question.",
        ),
        ({"question": "Who?", "context": CAT}, ":1 has no column 'answers'; its columns are: question"),
        ({**row("cat", 4), "context": 7}, ":1: context is int 7, not a string"),
        ({**row("cat", 4), "answers": 7}, ":1: the answers are 7; they must be {text: [...], answer"),
        ({**row("cat", 4), "answers": {"text": ["cat"], "answer_start": []}}, ":1: the answers are {'"),
        ({**row("cat", 4), "answers": [{"text": 7}]}, ":1: the answers are [{'text': 7}]"),
        (
            {**row("cat", 4), "answers": [{"text": "cat", "answer_start": 4.5}]},
            ":1: answer_start is 4.5;",
        ),
        ({"paragraphs": 7}, ':1: "paragraphs" is 7; as in SQuAD it must be a list'),
        ({"paragraphs": [7]}, ':1: number 1 of "paragraphs" is 7, not an object'),
        ({"paragraphs": [{"context": CAT}]}, ':1, paragraph 1: "qas" is None'),
        (
            {"paragraphs": [{"context": CAT, "qas": [{"id": "a", "question": "Who?"}]}]},
            ':1, paragraph 1, question 1 has no "answers"; it has id, question.',
        ),
    ],
)
def test_what_is_no_question_is_refused_with_its_place(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as raised:
        parse(rows(tmp_path, values))
    assert message in str(raised.value)


def test_answers_are_not_looked_at_where_none_are_needed(tmp_path: Path) -> None:
    file = rows(tmp_path, row("dog", 4), {"question": "Who?", "context": CAT})
    questions, reader, _ = parse(file, Questions(with_answers=False))
    assert [question.answers for question in questions] == [(), ()]
    assert reader.dropped == 0


def test_articles_stay_together_if_there_are_enough_and_contexts_always(tmp_path: Path) -> None:
    titled = [{**row("cat", 4, f"{CAT} {n}"), "title": title} for n, title in enumerate("AABBC")]
    # The same text under another title.
    titled.append({**row("cat", 4, f"{CAT} 0"), "title": "D"})
    questions, reader, _ = parse(rows(tmp_path, *titled))
    assert [reader.group(question, 0.5) for question in questions] == ["A", "A", "B", "B", "C", "A"]
    # A tenth of three titles is none: texts are held out then.
    assert not reader.splits_by_title(0.1)
    assert reader.group(questions[0], 0.1) == questions[0].context == f"{CAT} 0"


def test_all_questions_of_squad_have_their_answer_where_they_say(shared_data: Path) -> None:
    for name in ("dev-v1.1.rebuilt", "xquad.zh", "xquad.hi", "xquad.ar"):
        questions, reader, _ = parse(shared_data / "question-answering" / f"{name}.json")
        assert len(questions) in (10_570, 1190)
        assert (reader.repaired, reader.dropped) == (0, 0)
        for question in questions:
            for text, start in question.answers:
                assert question.context[start : start + len(text)] == text
