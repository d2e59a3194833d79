"""Answering: questions and texts in, the parts of the texts that answer them out.

Windows of like length go through the model together, as `data.token_budget` puts them; memory does not
grow with the number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch

from gptcli.config.schema import DataSettings, RuntimeSettings
from gptcli.data.input_rows import STANDARD_INPUT, find_input
from gptcli.data.ledger import Reading
from gptcli.data.questions import Question, Questions
from gptcli.data.token_budget import TokenBatch, TokenBudget, score_in_order
from gptcli.data.windows import MIN_CONTEXT_LENGTH, Window, make_windows
from gptcli.errors import DataError, ModelError
from gptcli.models.loading import ANSWER_THRESHOLD, LoadedModel, load_model
from gptcli.models.scoring_forward import ScoringForward
from gptcli.tasks.assembly import ids_and_lengths
from gptcli.tasks.question_answering import (
    Span,
    Verdict,
    judge_question,
    judge_windows,
    log_probabilities_of_places,
)
from gptcli.training.device import choose_compute


@dataclass(frozen=True, slots=True)
class _AskedWindow:
    question: Question
    window: Window

    @property
    def input_ids(self) -> list[int]:
        return self.window.input_ids


@dataclass(frozen=True)
class Candidate:
    """A part of the text that may be the answer."""

    answer: str
    probability: float
    """That the answer begins and ends there, by the window that has it."""
    start: int
    end: int
    """Characters of the context, the last one excluded."""


@dataclass(frozen=True)
class Answer:
    """What a model says to a question."""

    id: str
    question: str
    answer: str | None
    """None if the text has none."""
    probability: float
    """Of the answer, or of there being none."""
    start: int | None
    end: int | None
    candidates: list[Candidate]
    """The likeliest, whether or not one of them is the answer."""

    def as_dict(self) -> dict[str, Any]:
        """Return all of it; the candidates only if more than one was asked for."""
        facts = asdict(self)
        if len(self.candidates) == 1:
            del facts["candidates"]
        return facts


class Answerer:
    """A loaded model that finds answers in texts of any length."""

    def __init__(
        self, model_name: str, data: DataSettings, runtime: RuntimeSettings, *, top_k: int = 1
    ) -> None:
        """top_k: candidates a question. Raises ModelError, EnvironmentProblem."""
        self.compute = choose_compute(runtime, for_training=False)
        self.loaded: LoadedModel = load_model(
            model_name, self.compute.device, self.compute.dtype, "question-answering"
        )
        if self.context_length < MIN_CONTEXT_LENGTH:
            raise ModelError(
                f"{self.loaded.name}: its context of {self.context_length} tokens is too short to "
                f"answer questions; that takes {MIN_CONTEXT_LENGTH}."
            )
        self._forward = ScoringForward(self.loaded.model, is_int8=self.compute.is_int8)
        self._budget = TokenBudget.of_device(self.compute.device.type, self.context_length)
        self._stride = data.stride
        self._top_k = top_k
        self._threshold = float(getattr(self.loaded.model.config, ANSWER_THRESHOLD, math.inf))
        self.questions = 0
        """Answered so far."""
        self.questions_cut = 0
        """Questions of which only the beginning was read: they fill more than half the context."""

    @property
    def context_length(self) -> int:
        return int(self.loaded.model.config.n_positions)

    def answer(self, questions: Iterable[Question], *, is_live: bool = False) -> Iterator[Answer]:
        """Yield the answer to each question, in order. Raises ModelError for a foreign tokenizer.

        is_live: the next question may come at any time; then those that are there are answered.
        """
        for some in score_in_order(
            questions,
            self._windows,
            self._judge,
            self._budget,
            characters=lambda question: len(question.question) + len(question.context),
            is_live=is_live,
        ):
            self.questions += len(some)
            for question, verdicts in some:
                yield self._answer(question, judge_question(verdicts, self._top_k))

    def _answer(self, question: Question, verdict: Verdict) -> Answer:
        def candidate(span: Span) -> Candidate:
            text = question.context[span.start : span.end]
            return Candidate(text, math.exp(span.score), span.start, span.end)

        candidates = [candidate(span) for span in verdict.spans]
        if verdict.margin > self._threshold:
            found, probability, place = None, math.exp(verdict.no_answer), (None, None)
            return Answer(question.id, question.question, found, probability, *place, candidates)
        best = candidates[0]
        return Answer(
            question.id,
            question.question,
            best.answer,
            best.probability,
            best.start,
            best.end,
            candidates,
        )

    def _windows(self, questions: list[Question]) -> list[list[_AskedWindow]]:
        """Return the windows of each question."""
        made_of_each = make_windows(
            self.loaded.tokenizer,
            [(question.question, question.context) for question in questions],
            context_length=self.context_length,
            stride=self._stride,
        )
        self.questions_cut += sum(made.is_question_cut for made in made_of_each)
        asked = [
            [_AskedWindow(question, window) for window in made.windows]
            for question, made in zip(questions, made_of_each, strict=True)
        ]
        largest = max((max(window.input_ids) for some in asked for window in some), default=0)
        self.loaded.check_token(largest, "a text")
        return asked

    @torch.inference_mode()
    def _judge(self, batch: TokenBatch[_AskedWindow]) -> list[Verdict]:
        """Return what the model says of each window."""
        input_ids, lengths = ids_and_lengths(batch, self.compute)
        every = torch.arange(input_ids.numel(), device=input_ids.device)
        hidden = self._forward.hidden_states(input_ids, every).view(*input_ids.shape, -1)
        log_probabilities = log_probabilities_of_places(self.loaded.model, hidden, lengths)
        windows = [asked.window for asked in batch.sequences]
        contexts = [asked.question.context for asked in batch.sequences]
        return judge_windows(log_probabilities, windows, contexts, self._top_k)


@dataclass(frozen=True)
class AskedQuestions:
    """The questions of a file, or of standard input."""

    questions: Iterator[Question]
    reading: Reading
    """What has been counted of those that were read."""
    total: int | None
    """How many there are, if that is known."""
    is_live: bool
    """Whether the next one may not be there yet."""


def read_questions(
    name: str,
    data: DataSettings,
    read_as: str | None = None,
    *,
    check_all: bool = False,
    has_own_ids: bool = False,
) -> AskedQuestions:
    """Return the questions of a file, or of "-" (standard input, JSON lines).

    read_as: how, if the name does not say it. Known answers are not looked at. check_all: all of a file
    can be read, not only the first. has_own_ids: no two may have the same id. Raises DataError if there
    is no question or it cannot be read, ConfigError for a format that there is not.
    """
    source = find_input(name, data, read_as or ("jsonl" if name == STANDARD_INPUT else None))

    def questions(reading: Reading) -> Iterator[Question]:
        found = Questions(with_answers=False).parse(source, data, reading)
        return _each_with_its_id(found) if has_own_ids else found

    total = None
    if check_all and source.can_be_read_twice:
        total = sum(1 for _ in questions(Reading()))
    reading = Reading()
    asked = questions(reading)
    first = next(asked, None)
    if first is None:
        raise DataError(f"{source}: there is no question in it.")
    return AskedQuestions(chain([first], asked), reading, total, not source.can_be_read_twice)


def _each_with_its_id(questions: Iterable[Question]) -> Iterator[Question]:
    """Yield the questions. Raises DataError for what {id: answer} cannot hold."""
    seen: dict[str, str] = {}
    for question in questions:
        if question.id in seen:
            raise DataError(
                f"{question.where} has the id {question.id!r:.60}, as has {seen[question.id]}; .json "
                "holds one answer an id. Give --output a name in .jsonl or .csv."
            )
        seen[question.id] = question.where
        yield question
