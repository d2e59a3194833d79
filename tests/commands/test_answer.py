"""`gptcli answer` as a person types it."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2ForQuestionAnswering, PreTrainedTokenizerFast

from gptcli.config.schema import ModelSettings
from gptcli.models.architecture import model_config, new_model
from gptcli.models.saving import save_model
from tests.commands.conftest import Result, Run, refused
from tests.conftest import TEXT, Cli, Start
from tests.test_console import shown_on_a_terminal

CAT = "The cat 🦉 sat on the mat."


@pytest.fixture(scope="session")
def qa_folder(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerFast,
    model_settings: ModelSettings,
) -> Path:
    """A model that answers questions, with random weights and a context of 32."""
    folder = tmp_path_factory.mktemp("saved") / "qa"
    config = model_config(model_settings, tokenizer)
    save_model(new_model(config, 0, GPT2ForQuestionAnswering), tokenizer, folder)
    return folder


@pytest.fixture
def answer(run: Run, qa_folder: Path) -> Run:
    """Run `gptcli answer --model` with the tiny model, in float32 if nothing else is asked for."""

    def answer(*arguments: str | Path, stdin: bytes = b"") -> Result:
        precision = () if "--precision" in arguments else ("--precision", "fp32")
        return run("answer", "--model", qa_folder, *precision, *arguments, stdin=stdin)

    return answer


def hugging_face_answer(folder: Path, question: str, context: str) -> tuple[str, float]:
    """Return the answer that transformers' own model gives to a text of one window."""
    model = GPT2ForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    asked = tokenizer.encode(question)
    text = tokenizer(context, return_offsets_mapping=True)
    ids = torch.tensor([[*asked, end, *text.input_ids, end]])
    with torch.inference_mode():
        outputs = model(ids)
    begins, ends = (logits[0].log_softmax(0) for logits in (outputs.start_logits, outputs.end_logits))
    first = len(asked) + 1
    best, found = -math.inf, ""
    for i, (start, _) in enumerate(text.offset_mapping):
        for j in range(i, min(i + 30, len(text.offset_mapping))):
            span = context[start : text.offset_mapping[j][1]]
            edges = [context[slice(*text.offset_mapping[place])] for place in (i, j)]
            score = (begins[first + i] + ends[first + j]).item()
            if score > best and all(edge.strip() for edge in edges):
                best, found = score, span.strip()
    return found, math.exp(best)


def test_the_answer_is_that_of_hugging_face(answer: Run, qa_folder: Path) -> None:
    expected, probability = hugging_face_answer(qa_folder, "Who?", CAT)
    (row,) = answer("--question", "Who?", "--context", CAT, "--json").rows
    assert row.keys() == {"id", "question", "answer", "probability", "start", "end"}
    assert row["answer"] == expected == CAT[row["start"] : row["end"]]
    assert row["probability"] == pytest.approx(probability, rel=1e-4)
    result = answer("-q", "Who?", "--context", CAT)
    place = f"{row['start']}-{row['end']}"
    assert result == (
        f"{expected} (probability {probability:.3f}, characters {place})\n", "", 0,
    )  # fmt: skip


def test_the_likeliest_answers_are_listed(answer: Run) -> None:
    (row,) = answer("-q", "Who?", "--context", CAT, "--top-k", "3", "--json").rows
    candidates = row["candidates"]
    assert candidates[0] == {name: row[name] for name in ("answer", "probability", "start", "end")}
    assert [c["probability"] for c in candidates] == sorted(
        (c["probability"] for c in candidates), reverse=True
    )
    assert len({(c["start"], c["end"]) for c in candidates}) == 3
    lines = answer("-q", "Who?", "--context", CAT, "--top-k", "3").stdout.splitlines()
    assert [line[:3] for line in lines] == ["1. ", "2. ", "3. "]


def test_the_text_comes_from_an_option_a_file_or_standard_input(answer: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(CAT, encoding="utf-8-sig")
    expected = answer("-q", "Who?", "--context", CAT)
    assert expected.code == 0
    assert answer("-q", "Who?", "--context-file", "text.txt") == expected
    assert answer("-q", "Who?", "--context-file", "-", stdin=CAT.encode()) == expected
    assert answer("-q", "Who?", stdin=CAT.encode()) == expected


def test_a_long_text_is_read_to_its_end(answer: Run) -> None:
    (row,) = answer("-q", "Who?", "--context", TEXT, "--json").rows
    assert TEXT[row["start"] : row["end"]] == row["answer"]
    # One of the windows of the text has the answer to all of it.
    places = {
        (c["start"], c["end"])
        for c in answer("-q", "Who?", "--context", TEXT, "--top-k", "50", "--json").rows[0]["candidates"]
    }
    assert max(end for _, end in places) > len(TEXT) // 2


def questions_file(path: Path) -> list[dict[str, Any]]:
    rows = [
        {"id": f"q{n}", "question": f"Who {n}?", "context": f"{CAT * (1 + n % 4)} {n}"} for n in range(9)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_a_file_of_questions_is_answered_as_each_alone(answer: Run, tmp_path: Path) -> None:
    rows = questions_file(tmp_path)
    found = answer("--input", "rows.jsonl", "--json").rows
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    for row, asked in zip(found, rows, strict=True):
        (alone,) = answer("-q", asked["question"], "--context", asked["context"], "--json").rows
        assert row["probability"] == pytest.approx(alone["probability"], rel=1e-4)
        assert {**row, "id": "", "probability": 0} == {**alone, "id": "", "probability": 0}
    piped = answer("--input", "-", "--json", stdin=(tmp_path / "rows.jsonl").read_bytes())
    assert piped.rows == found
    lines = answer("--input", "rows.jsonl").stdout.splitlines()
    assert lines[0] == "Who 0?" and lines[1].startswith("  ") and len(lines) == 18


def test_a_question_that_is_asked_is_answered_before_the_next(start: Start, qa_folder: Path) -> None:
    process = start("answer", "--model", qa_folder, "--input", "-", "--json")
    for asked in ("Who sat?", "Where?"):
        process.stdin.write(json.dumps({"question": asked, "context": CAT}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["question"] == asked
    rest, _ = process.communicate()
    assert (process.returncode, rest) == (0, "")


def test_answers_before_a_bad_row_of_a_stream_are_given(answer: Run) -> None:
    lines = json.dumps({"question": "Who?", "context": CAT}) + "\n{bad\n"
    result = answer("--input", "-", "--json", stdin=lines.encode())
    assert (len(result.rows), result.code) == (1, 3)
    assert result.stderr.startswith("Error: standard input:2 is not JSON: ")


def test_a_bad_row_of_a_file_is_named_before_any_work(answer: Run, tmp_path: Path) -> None:
    rows = [*questions_file(tmp_path), {"question": 1, "context": CAT}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = refused(answer("--input", "bad.jsonl", "--output", "a.jsonl"), 3)
    assert line.startswith("bad.jsonl:10: question is int 1, not a string.")
    assert not (tmp_path / "a.jsonl.partial").exists()


def test_squad_is_answered_into_its_file_of_predictions(answer: Run, tmp_path: Path) -> None:
    qas = [{"id": name, "question": f"Who {name}?", "answers": []} for name in "ab"]
    articles = [{"title": "Cats", "paragraphs": [{"context": CAT, "qas": qas}]}]
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    found = answer("--input", "squad.json", "--json").rows
    result = answer("--input", "squad.json", "--output", "predictions.json")
    assert (result.code, result.stdout) == (0, "")
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert predictions == {row["id"]: row["answer"] for row in found}
    assert list(predictions) == ["a", "b"]
    assert answer("--input", "squad.json", "--output", "answers.csv").code == 0
    with (tmp_path / "answers.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["answer"] for row in table] == [row["answer"] for row in found]
    assert answer("--input", "squad.json", "--output", "answers.jsonl").code == 0
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found


def test_a_model_with_a_threshold_declines(run: Run, qa_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qa_folder, tmp_path / "declines"))
    facts = json.loads((folder / "config.json").read_text())
    asked = ("answer", "--model", folder, "-q", "Who?", "--context", CAT)
    answered = run(*asked, "--json").rows[0]
    for threshold, declines in ((-1e6, True), (1e6, False)):
        (folder / "config.json").write_text(json.dumps({**facts, "answer_threshold": threshold}))
        (row,) = run(*asked, "--json").rows
        if declines:
            assert (row["answer"], row["start"], row["end"]) == (None, None, None)
            assert 0 < row["probability"] < 1
            assert run(*asked).stdout == f"No answer (probability {row['probability']:.3f})\n"
            lines = run(*asked, "--top-k", "2").stdout.splitlines()
            assert lines[1] == "If there were one:" and lines[2].startswith("1. ")
        else:
            assert row == answered


def test_a_terminal_shows_what_is_waited_for(
    answer: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"question": "Who sat?", "context": "A cat sat."}
    (tmp_path / "questions.jsonl").write_text(f"{json.dumps(row)}\n" * 3)

    def work() -> None:
        assert answer("-i", "questions.jsonl").code == 0

    shown = shown_on_a_terminal(monkeypatch, "stderr", work)
    assert "Loading" in shown and "Answering" in shown


def test_what_is_not_answered_is_told(answer: Run, tmp_path: Path) -> None:
    rows = f"question,context\nWho?,{CAT}\n,{CAT}\n{'Who sat? ' * 9},{CAT}\n"
    (tmp_path / "rows.csv").write_text(rows)
    result = answer("--input", "rows.csv", "--json")
    assert len(result.rows) == 2
    assert result.stderr == (
        "Warning: 1 of 3 rows have no question or no context, and get no answer.\n"
        "Warning: 1 of 2 questions are longer than half the model's context of 32 tokens; only their "
        "beginning was read.\n"
    )


def test_a_process_of_its_own_prints_the_same(gptcli: Cli, answer: Run, qa_folder: Path) -> None:
    expected = answer("-q", "Who 🦉?", "--context", CAT)
    result = gptcli("answer", "--model", qa_folder, "-q", "Who 🦉?", "--context", CAT)
    assert (result.stdout, result.stderr, result.returncode) == expected


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Give --question and --context, or --input FILE."),
        (["-q", " ", "--context", CAT], 2, "Give --question and --context, or --input FILE."),
        (["-q", "Who?"], 2, "Give the text with the answer: --context TEXT or --context-file FILE."),
        (["-q", "Who?", "--context", " "], 2, "--context is empty; it is the text with the answer."),
        (
            ["-q", "Who?", "--context", CAT, "--context-file", "a"],
            2,
            "Give --context or --context-file, not both.",
        ),
        (["-q", "Who?", "--input", "a.jsonl"], 2, "Give --question or --input, not both."),
        (["-q", "Who?", "--context-file", "no"], 3, "no: no such file (--context-file)."),
        (["--input", "no.jsonl"], 3, "no.jsonl: no such file (--input)."),
        (["--input", "latin.jsonl"], 3, "latin.jsonl: byte 0xe9 at offset 1 is not UTF-8."),
        (["--input", "blank.jsonl"], 3, "blank.jsonl: there is no question in it."),
        (
            ["--input", "other.jsonl"],
            3,
            "other.jsonl:1 has no column 'question'; its columns are: frage, context. Set "
            "data.columns.question.",
        ),
        (
            ["--input", "same.jsonl", "--output", "a.json"],
            3,
            "same.jsonl:2 has the id 'x', as has same.jsonl:1; .json holds one answer an id. Give "
            "--output a name in .jsonl or .csv.",
        ),
        (["--input", "same.jsonl", "--output", "a.doc"], 2, "--output a.doc: its name does not say"),
        (["--input", "same.jsonl", "--output", "no/a.json"], 2, "the folder no does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_a_line(
    answer: Run, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b"{\xe9}")
    (tmp_path / "blank.jsonl").write_text('{"question": "", "context": ""}\n')
    (tmp_path / "other.jsonl").write_text('{"frage": "Wer?", "context": "Die Katze."}\n')
    same = json.dumps({"id": "x", "question": "Who?", "context": CAT})
    (tmp_path / "same.jsonl").write_text(f"{same}\n{same}\n")
    assert message in refused(answer(*arguments), code)


def test_a_model_of_another_kind_is_refused(run: Run, model_folder: Path) -> None:
    result = run("answer", "--model", model_folder, "-q", "Who?", "--context", CAT)
    assert refused(result, 4) == (
        f"{model_folder} has no question-answering head; fine-tune it with `gptcli finetune` and "
        "task: question-answering."
    )
