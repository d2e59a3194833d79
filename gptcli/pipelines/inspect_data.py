"""Looking at data: what a training would learn from, and what is wrong with it, without the training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from gptcli.config.schema import Settings
from gptcli.data.batches import Batch
from gptcli.data.conversations import parse_conversations
from gptcli.data.documents import Place, PlacedPiece
from gptcli.data.items import AN_EXAMPLE, Items, read_items
from gptcli.data.ledger import Reading
from gptcli.data.preparation import (
    TRAIN,
    VALIDATION,
    PreparedText,
    prepare_text,
    read_split,
)
from gptcli.data.progress import Notify, PreparationProgress, noticed
from gptcli.evaluation.overlap import MIN_WORDS, ItemGrams, words_of
from gptcli.inspection.duplicates import (
    Copies,
    NearCopies,
    Repeats,
    copies_findings,
    near_findings,
)
from gptcli.inspection.encoding_trouble import EncodingTrouble
from gptcli.inspection.findings import Finding, in_order
from gptcli.inspection.held_out import Overlap, overlap_findings, size_findings
from gptcli.inspection.item_texts import compared_text, key_texts, texts_of
from gptcli.inspection.labels import contradiction_findings, label_findings
from gptcli.inspection.lengths import (
    Fit,
    Lengths,
    Padding,
    fit_findings,
    padding_findings,
    padding_of,
    tokenizer_findings,
)
from gptcli.inspection.passages import Passages
from gptcli.inspection.questions import question_findings, window_findings
from gptcli.inspection.reading import reading_findings
from gptcli.inspection.rendering import RenderedExample, render_labels, render_places, render_tokens
from gptcli.inspection.scripts import Scripts
from gptcli.tasks.classification import read_labelled
from gptcli.tasks.question_answering import read_questions
from gptcli.tasks.table import build_job
from gptcli.training.device import choose_compute
from gptcli.training.job import Job

T = TypeVar("T")

MAX_BATCHES = 500
"""Of which the padding is counted: an epoch of a large data set has no other share."""
BYTES_BETWEEN_NOTICES = 2**20
LONG_ENOUGH = 200
"""Characters of a passage whose words need not be counted to see that there are some."""
MAX_HELD_OUT_CHARACTERS = 20_000_000
"""Looked for in the training text, of which memory is for their runs of words."""


@dataclass(frozen=True)
class Inspection:
    """What is known of the data before anything is trained on it."""

    task: str
    summary: list[tuple[str, str]]
    """(what, how much), for people."""
    ledger: dict[str, Any]
    """What the run's data.json would say."""
    facts: dict[str, Any]
    """What else was measured."""
    findings: list[Finding]
    """The worst first."""
    examples: list[RenderedExample]

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            **self.ledger,
            **self.facts,
            "findings": [finding.as_dict() for finding in self.findings],
            "examples": [example.as_dict() for example in self.examples],
        }


def inspect_data(
    settings: Settings, examples: int = 0, notify: Notify = lambda event: None
) -> Inspection:
    """Read and check the data as a training with these settings would, and write nothing but its cache.

    examples: so many are rendered, each from another batch, as far as there are.
    Raises DataError, ConfigError or ModelError, as the training would.
    """
    # The device decides nothing about the data, and need not be here.
    runtime = settings.runtime.model_copy(update={"device": "cpu", "precision": "fp32"})
    settings = settings.model_copy(update={"runtime": runtime})
    compute = choose_compute(runtime, for_training=False)
    job = build_job(settings, compute, notify)
    looks = _Looks(notify, list(_rendered(job, examples)))
    if settings.task == "language-modelling":
        prepared = prepare_text(settings, notify, job.tokenizer if settings.model.name else None)
        return _of_text(settings, job, prepared, looks)
    return _of_items(settings, job, _items(settings, notify), looks)


class _Looks:
    """All that is gathered while the text passes by."""

    def __init__(self, notify: Notify, examples: list[RenderedExample]) -> None:
        self.notify = notify
        self.examples = examples
        self.trouble = EncodingTrouble()
        self.scripts = Scripts()
        self.copies = Copies()
        self.near = NearCopies()
        self.characters: list[int] = []
        """Of each document or item."""

    def look_at(self, text: str, place: Place) -> None:
        self.trouble.look_in(text, place)
        self.scripts.look_in(text)

    def near_copies(self) -> Repeats:
        return self.near.result(
            lambda done, total: self.notify(PreparationProgress("comparing", done, total, "rounds"))
        )


def _of_text(settings: Settings, job: Job, prepared: PreparedText, looks: _Looks) -> Inspection:
    """Return what is known of running text, which is read twice and never kept."""
    reading, ledger = prepared.ledger.reading, job.ledger
    held_out = _look_at_text(settings, reading, looks)
    overlap = _overlap_of_text(settings, reading, held_out, looks.notify)
    stores = [prepared.train, *([prepared.validation] if prepared.validation else [])]
    ends = [store.document_ends.astype(np.int64) for store in stores]
    tokens = Lengths.of(np.concatenate([np.diff(each, prepend=0) for each in ends]))
    assert tokens is not None, "a split without documents is refused"
    epoch, context_length = ledger["epoch"], _context_length(job)
    padding = Padding(epoch["padding_tokens"], epoch["sequences"] * context_length)
    fit = Fit(context_length, reading.documents, 0, 0, epoch["tokens_lost"], tokens.total)
    found = _Found(
        looks,
        fit.tokens,
        padding,
        "passages",
        "passages",
        findings=[
            *size_findings(None, job.validation.tokens),
            *([] if overlap is None else overlap_findings(overlap, "passages")),
            *fit_findings(fit),
        ],
        facts={
            "document_tokens": tokens.as_dict(),
            "overlap": None if overlap is None else asdict(overlap),
        },
        summary=[("lengths", f"{tokens} tokens a document")],
    )
    return found.inspection(settings, job, reading)


def _look_at_text(settings: Settings, reading: Reading, looks: _Looks) -> dict[str, str]:
    """Look at the text; return the held-out passages with their places, as far as they are compared."""
    passages = {TRAIN: Passages(), VALIDATION: Passages()}
    held_out: dict[str, str] = {}
    characters = held_out_characters = 0
    for split, piece in _read_noticed(settings, reading, "inspecting", looks.notify):
        looks.look_at(piece.text, piece.place)
        characters += len(piece.text)
        if piece.ends_document:
            looks.characters.append(characters)
            characters = 0
        for text, place in passages[split].of(piece):
            where = place.of(text, len(text) - len(text.lstrip()))
            # White space around a passage is no part of it, and neither is a heading of a few words.
            text = text.strip()
            if len(text) < LONG_ENOUGH and len(words_of(text)) < MIN_WORDS:
                continue
            looks.copies.add(text, where)
            looks.near.add(text, where)
            if split == VALIDATION and held_out_characters < MAX_HELD_OUT_CHARACTERS:
                held_out.setdefault(text, where)
                held_out_characters += len(text)
    return held_out


def _overlap_of_text(
    settings: Settings, reading: Reading, held_out: dict[str, str], notify: Notify
) -> Overlap | None:
    """Return what of the held-out passages stands in the training text; None without any.

    held_out: {text: its place}.
    """
    if not held_out:
        return None
    grams = ItemGrams(held_out)
    grams.look_in(
        (piece.text, piece.ends_document)
        for split, piece in _read_noticed(settings, reading, "looking for overlap", notify)
        if split == TRAIN
    )
    return Overlap.of(grams.result(), held_out, 0)


def _read_noticed(
    settings: Settings, reading: Reading, stage: str, notify: Notify
) -> Iterator[tuple[str, PlacedPiece]]:
    """Yield the text as `read_split` does, saying now and then how far it is."""
    done, said = 0, 0
    for split, piece in read_split(settings, reading):
        done += len(piece.text.encode())
        # Where each line is a document, there are very many pieces.
        if done - said >= BYTES_BETWEEN_NOTICES:
            said = done
            notify(PreparationProgress(stage, done, reading.bytes))
        yield split, piece


def _of_items(settings: Settings, job: Job, items: Items[Any], looks: _Looks) -> Inspection:
    """Return what is known of the items of a table."""
    ledger = job.ledger
    _look_at_items(items, looks)
    overlap = _overlap_of_items(items, ledger["held_out_but_trained_on"], looks.notify)
    lost, sizes = ledger["too_long"], (ledger["train"], ledger["validation"])
    examples, tokens = (sum(size[name] for size in sizes) for name in ("examples", "tokens"))
    fit = Fit(
        _context_length(job),
        examples + lost["dropped"],
        lost["cut"],
        lost["dropped"],
        lost["tokens_lost"],
        tokens + lost["tokens_lost"],
    )
    unit, compared = _UNITS[settings.task]
    found = _Found(
        looks,
        fit.tokens,
        padding_of(_first_epoch(job), job.micro_batch_size),
        unit,
        compared,
        findings=[
            *_task_findings(settings, job, items),
            *size_findings(len(items.validation), job.validation.tokens),
            *([] if overlap is None else overlap_findings(overlap, compared)),
            *(
                window_findings(ledger, len(items.train) + len(items.validation), fit.context_length)
                if settings.task == "question-answering"
                else fit_findings(fit)
            ),
        ],
        facts={"overlap": None if overlap is None else asdict(overlap)},
        summary=[],
    )
    return found.inspection(settings, job, items.reading)


_UNITS = {
    "classification": ("examples", "texts"),
    "question-answering": ("questions", "contexts"),
    "instruction": ("prompts", "prompts"),
}
"""What two equal items are called, and what is compared for the nearly equal ones."""


def _items(settings: Settings, notify: Notify) -> Items[Any]:
    match settings.task:
        case "classification":
            return read_labelled(settings, notify)[0]
        case "question-answering":
            return read_questions(settings, notify)[0]
        case "instruction":
            return read_items(settings, parse_conversations, notify)
        case task:
            raise AssertionError(task)


def _look_at_items(items: Items[Any], looks: _Looks) -> None:
    both = [*items.train, *items.validation]
    seen: set[str] = set()
    for item in noticed(both, "inspecting", looks.notify):
        texts = texts_of(item)
        looks.characters.append(sum(map(len, texts)))
        for text in texts:
            # Many questions are about one text: what is wrong there is wrong once.
            if text not in seen:
                seen.add(text)
                looks.look_at(text, Place(item.where))
        looks.copies.add("\0".join(key_texts(item)), item.where)
        looks.near.add(compared_text(item), item.where)


def _overlap_of_items(items: Items[Any], equal: int, notify: Notify) -> Overlap | None:
    """Return what of the held-out items stands in the training text; None without any.

    equal: held-out items that are trained on, letter for letter.
    """
    held_out: dict[str, str] = {}
    for item in items.validation:
        held_out.setdefault(compared_text(item), item.where)
    if not held_out:
        return None
    grams = ItemGrams(held_out)
    trained = dict.fromkeys(map(compared_text, items.train))
    grams.look_in((text, True) for text in noticed(trained, "looking for overlap", notify))
    return Overlap.of(grams.result(), held_out, equal)


def _task_findings(settings: Settings, job: Job, items: Items[Any]) -> Iterator[Finding]:
    both = [*items.train, *items.validation]
    if settings.task == "question-answering":
        yield from question_findings(job.ledger)
    elif settings.task == "classification":
        if "labels" in job.ledger:
            has_validation = bool(items.validation)
            yield from label_findings(job.ledger["labels"], both, has_validation=has_validation)
        yield from contradiction_findings(both)


@dataclass(frozen=True)
class _Found:
    """What was found, that of the task and that of all."""

    looks: _Looks
    tokens: int
    """Of all that was read, before any cut."""
    padding: Padding
    unit: str
    """What equal inputs are called."""
    compared: str
    """What nearly equal texts are called."""
    findings: list[Finding]
    facts: dict[str, Any]
    summary: list[tuple[str, str]]

    def inspection(self, settings: Settings, job: Job, reading: Reading) -> Inspection:
        looks = self.looks
        characters, scripts = Lengths.of(looks.characters), looks.scripts.as_dict()
        assert characters is not None, "no text is refused"
        copies, near = looks.copies.result(), looks.near_copies()
        findings = [
            *looks.trouble.findings(reading, settings.data.encoding),
            *reading_findings(reading),
            *copies_findings(copies, self.unit),
            *near_findings(near, self.compared),
            *self.findings,
            *tokenizer_findings(self.tokens, reading.bytes, next(iter(scripts), None)),
            *padding_findings(self.padding),
        ]
        facts = {
            "characters": characters.as_dict(),
            "scripts": scripts,
            "encoding": looks.trouble.as_dict(),
            "duplicates": asdict(copies),
            "near_duplicates": asdict(near),
            "padding": self.padding.as_dict(),
            **self.facts,
        }
        summary = [
            ("read", _read(reading)),
            # Below, there are better ones.
            *(fact for fact in job.summary if fact[0] != AN_EXAMPLE),
            *self.summary,
            ("characters", str(characters)),
            ("scripts", _shown_scripts(scripts)),
        ]
        return Inspection(settings.task, summary, job.ledger, facts, in_order(findings), looks.examples)


def _context_length(job: Job) -> int:
    context_length = job.settings.model.context_length
    assert context_length is not None, "the job has filled it in"
    return context_length


def _first_epoch(job: Job) -> Iterator[Batch]:
    for step in range(min(MAX_BATCHES, math.ceil(job.steps_per_epoch))):
        yield job.task.batch(step)


def _rendered(job: Job, count: int) -> Iterator[RenderedExample]:
    """Yield the first sequence of each of the first batches, `count` of them."""
    tokenizer, settings = job.tokenizer, job.settings

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    for _, batch in zip(range(count), _first_epoch(job), strict=False):
        if batch.is_token_by_token:
            yield render_tokens(batch, 0, decode)
        elif settings.task == "question-answering":
            yield render_places(batch, 0, decode)
        else:
            labels = settings.data.labels if "labels" in job.ledger else None
            yield render_labels(batch, 0, decode, labels)


def _read(reading: Reading) -> str:
    files = f"{reading.files:,} file{'s' * (reading.files != 1)}, " if reading.files else ""
    rows = f"{reading.rows:,} rows, " if reading.rows else ""
    size = f"{reading.bytes / 1e6:,.2f} MB" if reading.bytes >= 1e5 else f"{reading.bytes:,} bytes"
    return f"{files}{rows}{reading.documents:,} with text, {size}"


def _shown_scripts(scripts: dict[str, float]) -> str:
    """Return the shares of the scripts that have a thousandth or more, the first at least."""
    shown = [(name, share) for name, share in scripts.items() if share >= 0.001] or [("none", 0.0)]
    rest = len(scripts) - len(shown)
    more = f", {rest} more under 0.1%" if rest > 0 else ""
    return ", ".join(f"{name} {share:.1%}" for name, share in shown) + more
