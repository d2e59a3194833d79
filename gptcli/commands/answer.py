"""`gptcli answer`: find the answers to questions in texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli import console
from gptcli.commands.options import Assignments, Device, Precision
from gptcli.errors import ConfigError

if TYPE_CHECKING:
    from gptcli.pipelines.answer import Answer, Candidate

PREDICTIONS = "json"
"""Output as {id: answer}; the other formats are those of all commands."""


def answer(
    model: str = typer.Option(
        ..., "--model", "-m", help="Model folder or run folder, of task: question-answering."
    ),
    question: str | None = typer.Option(None, "--question", "-q", help="What is asked."),
    context: str | None = typer.Option(None, "--context", help="The text with the answer."),
    context_file: str | None = typer.Option(
        None, "--context-file", metavar="FILE|-", help="The text, in a UTF-8 file, or - (stdin)."
    ),
    input_file: str | None = typer.Option(
        None,
        "--input",
        "-i",
        metavar="FILE|-",
        help="Questions: SQuAD's .json; .jsonl, .json, .csv, .tsv or .parquet with question and "
        "context; or - (stdin, JSON lines).",
    ),
    input_format: str | None = typer.Option(
        None, "--input-format", help="jsonl, json, csv or tsv, if the name of --input does not say it."
    ),
    output_file: Path | None = typer.Option(
        None,
        "--output",
        metavar="FILE",
        help="Write the answers to this file: .jsonl, .csv, .tsv; or .json, {id: answer} as SQuAD "
        "scores it.",
    ),
    top_k: int = typer.Option(1, "--top-k", min=1, max=1000, help="Show the k likeliest answers."),
    device: Device = None,
    precision: Precision = None,
    config: Path | None = typer.Option(
        None, "--config", "-c", help="YAML file; its data and runtime sections are used."
    ),
    assignments: Assignments = [],
    as_json: bool = typer.Option(False, "--json", help="Print JSON, one object a question."),
) -> None:
    """Find the answer to a question in a text, or those to a file of questions.

    Answers are parts of the text, shown with their place in it (characters, from 0). Long texts are read
    in windows, and nothing of them is left out. A model that was trained on unanswerable questions also
    says when there is no answer.

    Examples:
      gptcli answer -q "Who sat?" --context "A cat sat." -m runs/question-answering
      gptcli answer -i questions.json --output answers.json -m runs/question-answering
    """
    from gptcli.config.loading import load_settings

    runtime: dict[str, Any] = {"device": device, "precision": precision}
    settings = load_settings(config, assignments, {"runtime": runtime})
    if input_file is not None:
        for name, value in (
            ("--question", question),
            ("--context", context),
            ("--context-file", context_file),
        ):
            if value is not None:
                raise ConfigError(f"Give {name} or --input, not both.")
        text = ""
    elif question is None or not question.strip():
        raise ConfigError("Give --question and --context, or --input FILE.")
    else:
        from gptcli.data.input_rows import check_unicode

        check_unicode(question, ConfigError, "--question")
        text = _context(context, context_file)
    kind = PREDICTIONS
    if output_file is not None:
        from gptcli.data.output_rows import check_output, output_format

        if output_file.suffix.lower() != f".{PREDICTIONS}":
            kind = output_format(output_file, None)
        check_output(output_file, input_file)

    with console.working("Loading"):
        from gptcli.data.ledger import Reading
        from gptcli.data.output_rows import json_line
        from gptcli.data.questions import Question
        from gptcli.hub import quiet_libraries
        from gptcli.pipelines.answer import Answerer, AskedQuestions, read_questions

        quiet_libraries()
    if input_file is not None:
        asked = read_questions(
            input_file,
            settings.data,
            input_format,
            check_all=output_file is not None,
            has_own_ids=output_file is not None and kind == PREDICTIONS,
        )
    else:
        only = Question("", "1", "", str(question).strip(), text, ())
        asked = AskedQuestions(iter([only]), Reading(), 1, is_live=False)
    with console.working("Loading"):
        answerer = Answerer(model, settings.data, settings.runtime, top_k=top_k)
    answers = answerer.answer(asked.questions, is_live=asked.is_live)
    if output_file is not None:
        _write(output_file, kind, answers, asked.total)
    else:
        with console.ProgressDisplay() as display:
            has_bar = display.can_draw(is_live=asked.is_live)
            if has_bar:
                display.start("Answering", asked.total)
            for number, found in enumerate(answers, 1):
                is_only = input_file is None
                lines = [json_line(found.as_dict())] if as_json else _lines(found, is_only=is_only)
                display.write_result("".join(f"{line}\n" for line in lines))
                if has_bar:
                    display.update(number, f"{number:,} questions")
    reading = asked.reading
    if reading.empty_documents_dropped:
        console.warn(
            f"{reading.empty_documents_dropped:,} of {reading.rows:,} rows have no question or no "
            "context, and get no answer."
        )
    if answerer.questions_cut:
        console.warn(
            f"{answerer.questions_cut:,} of {answerer.questions:,} questions are longer than half the "
            f"model's context of {answerer.context_length} tokens; only their beginning was read."
        )


def _context(context: str | None, file: str | None) -> str:
    """Return the text in which to look, of the option, a file, or what is piped in."""
    from gptcli.data.input_rows import STANDARD_INPUT, check_unicode, read_whole

    if context is not None and file is not None:
        raise ConfigError("Give --context or --context-file, not both.")
    name = "--context"
    if context is None:
        if file is None and (sys.stdin is None or sys.stdin.isatty()):
            raise ConfigError("Give the text with the answer: --context TEXT or --context-file FILE.")
        name, context = read_whole(file or STANDARD_INPUT, "--context-file")
    check_unicode(context, ConfigError, name)
    if not context.strip():
        if file is None and name == "standard input":
            raise ConfigError("Give the text with the answer: --context TEXT or --context-file FILE.")
        raise ConfigError(f"{name} is empty; it is the text with the answer.")
    return context


def _lines(found: Answer, *, is_only: bool) -> Iterator[str]:
    indent = ""
    if not is_only:
        yield " ".join(found.question.split())
        indent = "  "
    if found.answer is None:
        yield f"{indent}No answer (probability {found.probability:.3f})"
        if len(found.candidates) > 1:
            yield f"{indent}If there were one:"
    elif len(found.candidates) == 1:
        yield indent + _shown(found.candidates[0])
    if len(found.candidates) > 1:
        for number, candidate in enumerate(found.candidates, 1):
            yield f"{indent}{number}. {_shown(candidate)}"


def _shown(candidate: Candidate) -> str:
    return (
        f"{' '.join(candidate.answer.split())} (probability {candidate.probability:.3f}, characters "
        f"{candidate.start}-{candidate.end})"
    )


def _write(path: Path, kind: str, answers: Iterable[Answer], total: int | None) -> None:
    from gptcli.data.output_rows import OutputFile, RowWriter, json_line

    writer = RowWriter(kind)
    predictions: dict[str, str] = {}
    of = "" if total is None else f"/{total:,}"
    with console.ProgressDisplay() as display, OutputFile(path) as file:
        display.start("Answering", total)
        for number, found in enumerate(answers, 1):
            if kind == PREDICTIONS:
                predictions[found.id] = found.answer or ""
            else:
                file.write(writer.lines(found.as_dict(), f"the answer to question {number}"))
            display.update(number, f"{number:,}{of} questions")
        if kind == PREDICTIONS:
            file.write(json_line(predictions) + "\n")
