"""Question answering: where in a text the answer begins and ends, or that it is not there.

That is `GPT2ForQuestionAnswering`: two numbers for each token, from which come the probabilities that
the answer begins and that it ends there. The last token of a window stands for "no answer here"
(`gptcli.data.windows` says why).

The score of an answer is the log-probability of its first and last token in its window, which makes the
scores of several windows comparable: each of them could as well have said that it has no answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.schema import Settings
from gptcli.data.batches import Batch
from gptcli.data.examples import Example, ExampleBatches, Examples, evaluation_batches
from gptcli.data.items import (
    Items,
    LengthLimit,
    count_labels,
    read_items,
    report_items,
    shortened,
)
from gptcli.data.progress import Notify, noticed
from gptcli.data.questions import Question, Questions
from gptcli.data.windows import MIN_CONTEXT_LENGTH, QuestionWindows, Window, make_windows
from gptcli.errors import ConfigError, DataError
from gptcli.evaluation.question_answering import (
    QuestionScores,
    best_threshold,
    score_answers,
    token_f1,
)
from gptcli.models.loading import ANSWER_THRESHOLD
from gptcli.models.starting import StartingModel
from gptcli.tasks.assembly import (
    BatchedTask,
    TaskData,
    assemble_job,
    choose_tokenizer,
    ids_and_lengths,
)
from gptcli.training.device import Compute
from gptcli.training.job import Evaluation, Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_ANSWER_TOKENS = 30
"""An answer has no more, as in the published SQuAD scripts."""
QUESTIONS_AT_ONCE = 1000
"""Made into windows together."""
SAMPLE_CHARACTERS = 120
"""Shown of a text on either side of an answer."""
ANSWERABLE, UNANSWERABLE = "answerable", "unanswerable"


def place_log_probabilities(model: Any, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return (sequences, 2, tokens) in float32: log-probability that the answer begins, and ends, there.

    input_ids: (sequences, tokens), padded on the right with anything. lengths: (sequences,).
    Padding has the probability 0, so that a sequence's numbers are the same in any batch.
    """
    # No attention mask: no token looks at the padding behind it.
    hidden = model.transformer(input_ids=input_ids, use_cache=False).last_hidden_state
    return log_probabilities_of_places(model, hidden, lengths)


def log_probabilities_of_places(model: Any, hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return what `place_log_probabilities` does, of hidden states: (sequences, tokens, width)."""
    head = model.qa_outputs
    # In float32 whatever the precision: bfloat16 makes neighbouring places equal.
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.float(), head.weight.float(), head.bias.float()).transpose(1, 2)
    places = torch.arange(hidden.shape[1], device=hidden.device)
    is_padding = places >= lengths[:, None]
    return logits.masked_fill(is_padding[:, None], -torch.inf).log_softmax(2)


@dataclass(frozen=True)
class Span:
    """A part of a text that may be the answer."""

    start: int
    end: int
    """Characters of the context, the last one excluded; equal if there is none."""
    score: float
    """Log-probability of its first token and of its last, in its window."""


@dataclass(frozen=True)
class Verdict:
    """What a model says of a window, or of a question by all its windows."""

    spans: list[Span]
    """The best ones, the best first. A question has one at least."""
    no_answer: float
    """Log-probability of "no answer here"; of several windows, that of the least sure one."""

    @property
    def margin(self) -> float:
        """By how much "no answer" is likelier than the best span, in nats."""
        return self.no_answer - self.spans[0].score


def judge_windows(
    log_probabilities: Tensor, windows: Sequence[Window], contexts: Sequence[str], count: int
) -> list[Verdict]:
    """Return for each window its `count` best spans of all that have at most MAX_ANSWER_TOKENS tokens.

    log_probabilities: (windows, 2, tokens). contexts: the whole text that each window is of.
    """
    rows, _, width = log_probabilities.shape
    is_possible = np.zeros((rows, 2, width), dtype=bool)
    for row, window in enumerate(windows):
        is_possible[row, 0, window.first : window.no_answer] = window.can_begin
        is_possible[row, 1, window.first : window.no_answer] = window.can_end
    places = log_probabilities.masked_fill(
        torch.from_numpy(~is_possible).to(log_probabilities.device), -torch.inf
    )
    longest = min(MAX_ANSWER_TOKENS, width)
    ends = F.pad(places[:, 1], (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    # (windows, tokens, longest): of the span that begins at a token and has so many more.
    scores = places[:, 0, :, None] + ends
    best, numbers = scores.flatten(1).topk(min(count, width * longest))
    last = torch.tensor([window.no_answer for window in windows], device=places.device)
    no_answer = log_probabilities.gather(2, last[:, None, None].expand(-1, 2, 1)).sum((1, 2))
    verdicts = []
    for window, context, row_scores, row_numbers, none in zip(
        windows, contexts, best.tolist(), numbers.tolist(), no_answer.tolist(), strict=True
    ):
        spans = []
        for score, number in zip(row_scores, row_numbers, strict=True):
            if score > -math.inf:
                first, more = divmod(number, longest)
                spans.append(Span(*window.characters(first, first + more, context), score))
        verdicts.append(Verdict(spans, none))
    return verdicts


def judge_question(windows: Sequence[Verdict], count: int) -> Verdict:
    """Return the `count` best spans of all windows of a question, each once."""
    best: dict[tuple[int, int], Span] = {}
    for span in sorted((span for window in windows for span in window.spans), key=lambda s: -s.score):
        best.setdefault((span.start, span.end), span)
    # There is none if every character of the text is cut by an edge: nothing, then, and surely not that.
    spans = list(best.values())[:count] or [Span(0, 0, -1e9)]
    return Verdict(spans, min(window.no_answer for window in windows))


@dataclass(frozen=True)
class HeldOut:
    """Questions that are answered to see how good the model is."""

    questions: list[Question]
    windows: list[tuple[int, Window]]
    """(number of the question, window)."""
    examples: Examples
    """Of the windows, in the same order."""


class QuestionAnswering(BatchedTask):
    """Learns where the answers lie in the windows of `batches`."""

    best_by = "f1"

    def __init__(
        self,
        batches: ExampleBatches,
        validation: HeldOut,
        compute: Compute,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(batches, compute, label_smoothing)
        self._validation = validation

    def target_weight(self, batch: Batch) -> float:
        return len(batch.targets)

    def summed_loss(self, model: nn.Module, batch: Batch, gradient: float = 1.0) -> Tensor:
        """Return the sum over windows of the mean cross-entropy of beginning and end."""
        smoothing = self._label_smoothing if model.training else 0.0
        return self._summed_loss(self._log_probabilities(model, batch), batch, smoothing)

    def _log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        return place_log_probabilities(model, *ids_and_lengths(batch, self._compute))

    def _summed_loss(self, log_probabilities: Tensor, batch: Batch, smoothing: float) -> Tensor:
        device = log_probabilities.device
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        loss = -log_probabilities.gather(2, targets[:, :, None]).sum() / 2
        if smoothing:
            lengths = torch.from_numpy(batch.lengths).to(device, non_blocking=True)
            # Padding has no share in it.
            finite = log_probabilities.masked_fill(log_probabilities == -torch.inf, 0.0)
            evenly = -(finite.sum((1, 2)) / lengths).sum() / 2
            loss = (1 - smoothing) * loss + smoothing * evenly
        return loss

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, micro_batch_size: int, between_batches: Callable[[], None]
    ) -> Evaluation | None:
        """Return loss, exact match and F1 of the held-out questions, 0 to 1; None without any.

        The threshold that is best for the unanswerable ones among them becomes the model's.
        """
        held_out = self._validation
        if not held_out.questions:
            return None
        model.eval()
        total = 0.0
        verdicts: list[list[Verdict]] = [[] for _ in held_out.questions]
        for numbers, batch in evaluation_batches(
            held_out.examples, micro_batch_size * held_out.examples.longest
        ):
            between_batches()
            with self._compute.autocast():
                log_probabilities = self._log_probabilities(model, batch)
            total += self._summed_loss(log_probabilities, batch, 0.0).item()
            owners, windows = zip(*(held_out.windows[number] for number in numbers), strict=True)
            contexts = [held_out.questions[owner].context for owner in owners]
            for owner, verdict in zip(
                owners, judge_windows(log_probabilities, windows, contexts, 1), strict=True
            ):
                verdicts[owner].append(verdict)
        answers = [judge_question(windows, 1) for windows in verdicts]
        scores, details = score_verdicts(held_out.questions, answers)
        if ANSWER_THRESHOLD in details:
            setattr(model.config, ANSWER_THRESHOLD, details[ANSWER_THRESHOLD])
        return Evaluation({"loss": total / len(held_out.windows), **scores}, details)


def score_verdicts(
    questions: Sequence[Question], verdicts: Sequence[Verdict]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return (exact_match and f1, 0 to 1; details). With unanswerable questions, these are the threshold
    found on them and the scores of both kinds."""
    accepted = [[text for text, _ in question.answers] for question in questions]
    predicted = [
        question.context[verdict.spans[0].start : verdict.spans[0].end]
        for question, verdict in zip(questions, verdicts, strict=True)
    ]
    details: dict[str, Any] = {}
    is_answerable = np.array([bool(texts) for texts in accepted])
    if not is_answerable.all():
        margins = np.array([verdict.margin for verdict in verdicts])
        f1 = np.array([token_f1(*pair) for pair in zip(predicted, accepted, strict=True)])
        threshold, _ = best_threshold(margins, f1, is_answerable)
        predicted = [
            text if margin <= threshold else "" for text, margin in zip(predicted, margins, strict=True)
        ]
        details[ANSWER_THRESHOLD] = threshold
    names = [str(number) for number in range(len(questions))]
    scores = score_answers(
        dict(zip(names, predicted, strict=True)), dict(zip(names, accepted, strict=True))
    )
    for kind, part in ((ANSWERABLE, scores.has_answer), (UNANSWERABLE, scores.no_answer)):
        if part is not None:
            details[kind] = {**_shares(part), "questions": part.count}
    return _shares(scores), details


def _shares(scores: QuestionScores) -> dict[str, float]:
    return {"exact_match": scores.exact_match / 100, "f1": scores.f1 / 100}


def read_questions(settings: Settings, notify: Notify) -> tuple[Items[Question], Questions]:
    """Return the questions of both splits, and the reader with what it counted."""
    reader = Questions()
    share = settings.data.validation_fraction
    items = read_items(
        settings, reader.parse, notify, group=lambda question: reader.group(question, share)
    )
    if items.split_by == "example":
        items = replace(items, split_by="title" if reader.splits_by_title(share) else "context")
    return items, reader


def build_job(settings: Settings, compute: Compute, notify: Notify) -> Job:
    """Return the job of learning to answer the questions of data.source."""
    start = StartingModel(settings)
    if start.context_length < MIN_CONTEXT_LENGTH:
        raise ConfigError(
            f"model.context_length is {start.context_length}; question answering needs "
            f"{MIN_CONTEXT_LENGTH} at least."
        )
    items, reader = read_questions(settings, notify)
    tokenizer = choose_tokenizer(settings, start, _texts(items.train), notify)
    windows = Windows(tokenizer, start.context_length, settings)
    train = windows.to_learn(noticed(items.train, "making training examples", notify))
    validation = windows.to_answer(noticed(items.validation, "making held-out examples", notify))
    report = report_items(
        items,
        train,
        validation.examples,
        windows.limit,
        labels=count_labels(_kinds(items.train), _kinds(items.validation), [ANSWERABLE, UNANSWERABLE]),
        counts={
            "answers_repaired": reader.repaired,
            "answers_dropped": reader.dropped,
            "questions_left_out": reader.left_out,
            "answers_cut_by_every_window": windows.answers_cut,
            "questions_in_several_windows": windows.in_several,
            "held_out_contexts_trained_on": _common_contexts(items),
        },
        sample=_sample(items.train[0]),
    )
    trainable = start.load("question-answering", tokenizer)
    # Until an evaluation finds a better one; where all can be answered, none.
    can_decline = any(not question.answers for question in items.train)
    config = trainable.model.config
    config.__dict__.pop(ANSWER_THRESHOLD, None)
    if can_decline:
        setattr(config, ANSWER_THRESHOLD, 0.0)
    training = settings.training
    batches = ExampleBatches(train, batch_size=training.batch_size, seed=settings.runtime.seed)
    task = QuestionAnswering(batches, validation, compute, training.label_smoothing)
    data = TaskData.of(train, validation.examples, windows.limit, report)
    return assemble_job(settings, compute, task, trainable, tokenizer, data)


def _kinds(questions: Sequence[Question]) -> Iterator[list[str]]:
    return ([ANSWERABLE if question.answers else UNANSWERABLE] for question in questions)


def _texts(questions: Sequence[Question]) -> Iterator[str]:
    yield from dict.fromkeys(question.context for question in questions)
    yield from (question.question for question in questions)


def _common_contexts(items: Items[Question]) -> int:
    trained = {question.context for question in items.train}
    return len(trained & {question.context for question in items.validation})


class Windows:
    """Makes questions into windows, and counts what is lost on the way."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, context_length: int, settings: Settings
    ) -> None:
        self._tokenizer = tokenizer
        self._stride = settings.data.stride
        self.limit = LengthLimit(context_length, settings.data.too_long)
        """Cut, or dropped, are questions over half the context. Texts never are."""
        self.answers_cut = 0
        """Training questions left out because no window has the whole of their answer."""
        self.in_several = 0
        """Questions whose text needs more than one window."""

    def to_learn(self, questions: Iterable[Question]) -> Examples:
        """Return the windows to train on. Of several answers, the first is learnt."""
        return Examples(self._learnt(questions))

    def _learnt(self, questions: Iterable[Question]) -> Iterator[Example]:
        for question, made in self._made(questions):
            targets = [
                window.target(start, start + len(text))
                for text, start in question.answers[:1]
                for window in made.windows
            ] or [None] * len(made.windows)
            if question.answers and not any(targets):
                self.answers_cut += 1
                continue
            for window, target in zip(made.windows, targets, strict=True):
                places = np.array(target or (window.no_answer, window.no_answer))
                yield Example(window.input_ids, places, question.where)

    def to_answer(self, questions: Iterable[Question]) -> HeldOut:
        """Return the windows to find the answers in, all of them."""
        kept: list[Question] = []
        windows: list[tuple[int, Window]] = []
        examples = []
        for question, made in self._made(questions):
            for window in made.windows:
                target = next(
                    (window.target(start, start + len(text)) for text, start in question.answers), None
                )
                places = np.array(target or (window.no_answer, window.no_answer))
                windows.append((len(kept), window))
                examples.append(Example(window.input_ids, places, question.where))
            kept.append(question)
        return HeldOut(kept, windows, Examples(examples))

    def _made(self, questions: Iterable[Question]) -> Iterator[tuple[Question, QuestionWindows]]:
        limit = self.limit
        for question, made in self._windows_of(questions):
            limit.lengths.append(made.token_count)
            if made.is_question_cut:
                if limit.rule == "refuse":
                    raise DataError(
                        f"{question.where}: the question has {made.question_tokens} tokens, more than "
                        f"half of model.context_length {limit.context_length}, and data.too_long is "
                        "refuse."
                    )
                if limit.rule == "drop":
                    limit.dropped += 1
                    limit.tokens_lost += made.token_count
                    continue
                limit.cut += 1
                limit.tokens_lost += made.question_tokens - limit.context_length // 2
            self.in_several += len(made.windows) > 1
            yield question, made

    def _windows_of(self, questions: Iterable[Question]) -> Iterator[tuple[Question, QuestionWindows]]:
        # As lists of Python, the tokens of all take far more memory than as arrays.
        left = iter(questions)
        while part := list(islice(left, QUESTIONS_AT_ONCE)):
            made = make_windows(
                self._tokenizer,
                [(question.question, question.context) for question in part],
                context_length=self.limit.context_length,
                stride=self._stride,
            )
            yield from zip(part, made, strict=True)


def _sample(question: Question) -> str:
    asked, context = shortened(question.question), question.context
    if not question.answers:
        return f"{asked} | {shortened(context)} [[no answer]]"
    (text, start), *_ = question.answers
    end = start + len(text)
    first, last = max(0, start - SAMPLE_CHARACTERS), end + SAMPLE_CHARACTERS
    marked = f"{context[first:start]}[[{text}]]{context[end:last]}"
    before, after = "... " if first else "", " ..." if last < len(context) else ""
    return f"{asked} | {before}{' '.join(marked.split())}{after}"
