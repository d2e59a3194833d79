"""Answering: questions and texts in, the parts of the texts that answer them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from gptcli.config.schema import DataSettings, RuntimeSettings
from gptcli.data.examples import Example, Examples
from gptcli.data.input_rows import STANDARD_INPUT, find_input
from gptcli.data.ledger import Reading
from gptcli.data.questions import Question, Questions
from gptcli.data.windows import MIN_CONTEXT_LENGTH, make_windows
from gptcli.errors import DataError, ModelError
from gptcli.models.loading import ANSWER_THRESHOLD, LoadedModel, load_model
from gptcli.tasks.assembly import ids_and_lengths
from gptcli.tasks.question_answering import (
    Span,
    Verdict,
    judge_question,
    judge_windows,
    place_log_probabilities,
)
from gptcli.training.device import choose_compute

# Windows of like length go through the model together, up to so many tokens.
BATCH_TOKENS = 16_384
# Questions whose windows are sorted together; their answers come when all are done.
QUESTIONS_AT_ONCE = 256


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
        self._stride = data.stride
        self._top_k = top_k
        self._threshold = float(getattr(self.loaded.model.config, ANSWER_THRESHOLD, math.inf))
        self.questions_cut = 0
        """Questions of which only the beginning was read: they fill more than half the context."""

    @property
    def context_length(self) -> int:
        return int(self.loaded.model.config.n_positions)

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Yield the answer to each question, in order. Raises ModelError for a foreign tokenizer."""
        for first in range(0, len(questions), QUESTIONS_AT_ONCE):
            part = questions[first : first + QUESTIONS_AT_ONCE]
            for question, verdict in zip(part, self._judge(part), strict=True):
                yield self._answer(question, verdict)

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

    @torch.inference_mode()
    def _judge(self, questions: Sequence[Question]) -> list[Verdict]:
        made_of_each = make_windows(
            self.loaded.tokenizer,
            [(question.question, question.context) for question in questions],
            context_length=self.context_length,
            stride=self._stride,
        )
        self.questions_cut += sum(made.is_question_cut for made in made_of_each)
        windows = [(n, window) for n, made in enumerate(made_of_each) for window in made.windows]
        examples = Examples(Example(window.input_ids, 0, "") for _, window in windows)
        self.loaded.check_token(max(max(window.input_ids) for _, window in windows), "a text")
        order = np.argsort(-examples.lengths, kind="stable").tolist()
        verdicts: list[list[Verdict]] = [[] for _ in questions]
        while order:
            # The first is the longest: as wide as it are all of the batch.
            count = max(1, BATCH_TOKENS // int(examples.lengths[order[0]]))
            numbers, order = order[:count], order[count:]
            log_probabilities = place_log_probabilities(
                self.loaded.model, *ids_and_lengths(examples.batch(numbers), self.compute)
            )
            owners, parts = zip(*(windows[number] for number in numbers), strict=True)
            contexts = [questions[owner].context for owner in owners]
            judged = judge_windows(log_probabilities, parts, contexts, self._top_k)
            for owner, verdict in zip(owners, judged, strict=True):
                verdicts[owner].append(verdict)
        return [judge_question(parts, self._top_k) for parts in verdicts]


def read_questions(
    name: str, data: DataSettings, read_as: str | None = None
) -> tuple[list[Question], Reading]:
    """Return the questions of a file, or of "-" (standard input, JSON lines), and what was counted.

    read_as: how, if the name does not say it. Known answers are not looked at. Raises DataError if there
    is no question or it cannot be read, ConfigError for a format that there is not.
    """
    source = find_input(name, data, read_as or ("jsonl" if name == STANDARD_INPUT else None))
    reading = Reading()
    questions = list(Questions(with_answers=False).parse(source, data, reading))
    if not questions:
        raise DataError(f"{source}: there is no question in it.")
    return questions, reading
