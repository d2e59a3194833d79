"""Evaluation: a model and what to test it on in, scores with their uncertainty out.

1. What is tested follows from the model: text, labels, answers or conversations; or named benchmarks.
2. Each item is scored once, in float32 unless another precision is asked for, without dropout.
3. `evaluation.bootstrap` makes scores and intervals of what was measured item by item; with a second
   model it makes differences of the same items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from gptcli.config.schema import Settings
from gptcli.data.documents import Piece
from gptcli.data.items import LengthLimit
from gptcli.data.ledger import Reading
from gptcli.data.progress import PreparationProgress, noticed
from gptcli.data.sources import Source
from gptcli.errors import ConfigError, DataError, ModelError
from gptcli.evaluation.benchmarks.benchmark import Benchmark, Item
from gptcli.evaluation.benchmarks.table import choose_benchmarks, find_rows
from gptcli.evaluation.bootstrap import Difference, Measured, Score, differences, scores_of
from gptcli.evaluation.choices import (
    ChoiceCounts,
    ItemResult,
    measure_choices,
    metric_names,
    score_items,
)
from gptcli.evaluation.continuations import ContinuationScorer
from gptcli.evaluation.detokenizing import detokenized
from gptcli.evaluation.question_answering import measure_answers
from gptcli.evaluation.sliding_window import METRICS, TextScorer, WindowRules
from gptcli.evaluation.token_losses import measure_targets
from gptcli.files import HASHED_BYTES, WORTH_A_BAR
from gptcli.generation.conversation import ChatFormat
from gptcli.models.loading import (
    FoundModel,
    LoadedModel,
    find_model,
    label_names,
    load_model,
    objective_of,
)
from gptcli.pipelines.answer import Answerer
from gptcli.pipelines.evaluate_labels import LabelTest
from gptcli.pipelines.tested_data import TestedData
from gptcli.tasks.instruction import conversation_examples
from gptcli.training.device import Compute, choose_compute
from gptcli.training.run import library_versions

OnProgress = Callable[[str, int, int | None, str], None]
"""Called with (what is tested, how much is done, of how much if known, what is counted)."""
INTERVALS = "drawing intervals"
"""What takes a while behind a test of many items."""
OnSample = Callable[[dict[str, Any]], None]
"""Called with one item and what the model says of it."""


@dataclass(frozen=True)
class Request:
    """What to test a model on."""

    data: str | None = None
    """A source of data.source's kinds, or a folder of benchmarks; None: held-out data, or the hub."""
    benchmarks: tuple[str, ...] = ()
    limit: int | None = None
    """Only the first items; of a benchmark, of each of its groups."""
    labels: list[str] | None = None
    """What a causal model is to choose from, for texts that are labelled."""


@dataclass(frozen=True)
class Report:
    """The result of one test of one model."""

    test: str
    """"text", "labels", "questions", "conversations", or the benchmark's name."""
    about: str
    conditions: dict[str, Any]
    """What was tested on and how: data, counts of items and tokens, context length, ..."""
    scores: list[Score]
    measured: Measured
    items_fingerprint: str
    """Equal for equal items in the same order."""
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a person should know of the scores."""

    def as_dict(self) -> dict[str, Any]:
        """Return all but what was measured of each item."""
        return {
            "test": self.test,
            "about": self.about,
            **self.conditions,
            "items_fingerprint": self.items_fingerprint,
            "scores": {
                score.name: {
                    "value": score.value,
                    "low": score.low,
                    "high": score.high,
                    "definition": score.definition,
                    "is_better_higher": score.is_better_higher,
                }
                for score in self.scores
            },
            **self.details,
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items of one test."""

    test: str
    items: int
    differences: list[Difference]

    def as_dict(self) -> dict[str, Any]:
        rows = {
            difference.name: {**asdict(difference), "is_real": difference.is_real}
            for difference in self.differences
        }
        return {"test": self.test, "items": self.items, "differences": rows}


class Evaluator:
    """One model and what it is tested on; all that can be checked is checked before it is loaded."""

    def __init__(
        self,
        model: str,
        settings: Settings,
        request: Request,
        progress: OnProgress = lambda what, done, total, unit: None,
        on_sample: OnSample = lambda sample: None,
        first: Evaluator | None = None,
    ) -> None:
        """settings: `config_of_run` has those of a run. first: the model that it is compared with.

        Raises ConfigError, DataError, ModelError.
        """
        self.model = model
        self._settings = settings
        self._request = request
        self._progress = progress
        self._on_sample = on_sample
        runtime = settings.runtime
        if runtime.precision == "auto":  # The same figure on every machine.
            runtime = runtime.model_copy(update={"precision": "fp32"})
        self._runtime = runtime
        self.compute: Compute = choose_compute(runtime, for_training=False)
        self.found: FoundModel = find_model(model)
        self._label_order: list[str] | None = None
        if first is not None:
            if self.found.kind != first.found.kind:
                raise ConfigError(
                    f"--compare is for models of one kind; {first.model} is for {first.found.kind}, "
                    f"{model} for {self.found.kind}."
                )
            if self.found.kind == "classification" and objective_of(first.found.config) != "regression":
                self._label_order = label_names(first.found.config)
                own = label_names(self.found.config)
                if sorted(own) != sorted(self._label_order):
                    raise ModelError(
                        f"{model} has the labels {', '.join(own[:10])}; the model that it is "
                        f"compared with has {', '.join(self._label_order[:10])}."
                    )
        self._benchmarks, self.skipped = choose_benchmarks(
            request.benchmarks, request.data, settings.evaluation
        )
        self.data = TestedData(model, settings, request.data, self._notify)
        self._rows: dict[str, list[Source]] = {}
        self._check()

    def _notify(self, event: PreparationProgress) -> None:
        self._progress(event.stage, event.done, event.total, event.unit)

    def _check(self) -> None:
        if self._benchmarks and self.found.kind != "language-modelling":
            raise ModelError(
                f"{self.model} is for {self.found.kind}; benchmarks need a model that predicts text. "
                "Leave --benchmark out, and give labelled data with --data."
            )
        for benchmark in self._benchmarks:
            rows = find_rows(benchmark, self._request.data, self._settings.data, Reading())
            self._rows[benchmark.name] = rows
            # The first item, before the model is loaded.
            if not self._first_item(benchmark, rows):
                raise DataError(
                    f"{', '.join(map(str, rows[:3]))}: there is no item for {benchmark.name}."
                )
        if not self._benchmarks:
            self.data.check()
            # Not of what was held out, which takes its time to prepare.
            if self._request.data is not None and next(self._items(), None) is None:
                raise DataError(f"{self.data.name}: there is nothing to test on.")
        self._rules()

    def _first_item(self, benchmark: Benchmark, rows: list[Source]) -> Item | None:
        return next(benchmark.read(rows, self._settings.data, Reading()), None)

    def _items(self) -> Iterator[Any]:
        """Return the documents, labelled texts, questions or conversations."""
        if self.found.kind == "classification" or self._request.labels:
            return self.data.labelled(objective_of(self.found.config))
        if self.found.kind == "question-answering":
            return self.data.questions()
        if self._settings.task == "instruction":
            return self.data.conversations()
        return self.data.documents()

    @property
    def seed(self) -> int:
        return self._settings.runtime.seed

    def score_names(self) -> list[str] | None:
        """Return what the scores will be called, with their test's name too; None if not known yet."""
        if self._benchmarks:
            tests = {one.name: metric_names(one) for one in self._benchmarks}
        elif self.found.kind == "language-modelling" and not self._request.labels:
            tests = {"text": [metric.name for metric in METRICS]}
        else:
            return None
        names = [name for of_test in tests.values() for name in of_test]
        return list(
            dict.fromkeys(names + [f"{test}.{n}" for test, of_test in tests.items() for n in of_test])
        )

    def item_texts(self) -> Iterator[str]:
        """Yield a text for each item that is tested on, to be looked for in training text."""
        limit = self._request.limit
        if self._benchmarks:
            for benchmark in self._benchmarks:
                items = benchmark.read(self._rows[benchmark.name], self._settings.data, Reading())
                for item in _first_of_each_group(items, limit):
                    right = item.continuations[item.gold]
                    yield right.context + right.text
        elif self.found.kind == "classification":
            objective = objective_of(self.found.config)
            for text in islice(self.data.labelled(objective), limit):
                yield f"{text.text}\n{text.text_pair or ''}"
        elif self.found.kind == "question-answering":
            for question in islice(self.data.questions(), limit):
                yield f"{question.question}\n{question.context}"
        elif self._settings.task == "instruction":
            for talk in islice(self.data.conversations(), limit):
                yield "\n".join(content for _, content in talk.messages)
        else:
            for piece in _first_documents(self.data.documents(), limit):
                # Paragraphs: a document as a whole is seldom copied as a whole.
                yield from (line for line in piece.text.split("\n") if line.strip())

    def run(self) -> Iterator[Report]:
        """Yield the report of each test. Raises DataError, ModelError."""
        if self._benchmarks:
            scorer = ContinuationScorer(self.load(), self.compute)
            for benchmark in self._benchmarks:
                yield self._test_benchmark(benchmark, scorer)
        elif self.found.kind == "classification" or self._request.labels:
            yield self._test_labels()
        elif self.found.kind == "question-answering":
            yield self._test_questions()
        elif self._settings.task == "instruction":
            yield self._test_conversations()
        else:
            yield self._test_text()

    def load(self) -> LoadedModel:
        """Return the causal model."""
        return load_model(self.model, self.compute.device, self.compute.dtype)

    # Benchmarks.

    def _test_benchmark(self, benchmark: Benchmark, scorer: ContinuationScorer) -> Report:
        counts = ChoiceCounts()
        digest = hashlib.sha256()

        def items() -> Iterator[Item]:
            found = benchmark.read(self._rows[benchmark.name], self._settings.data, Reading())
            return _first_of_each_group(found, self._request.limit)

        total = sum(1 for _ in items())

        def results() -> Iterator[ItemResult]:
            for result in score_items(
                scorer,
                items(),
                counts,
                lambda done: self._progress(benchmark.name, done, total, "items"),
            ):
                digest.update(repr((result.item.continuations, result.item.gold)).encode())
                self._on_sample({"test": benchmark.name, **result.as_dict()})
                yield result

        measured = measure_choices(benchmark, results())
        notes = [benchmark.caution] if benchmark.caution else []
        if counts.cut:
            notes.append(
                f"{counts.cut:,} items are longer than the model's context of {scorer.context_length:,} "
                "tokens: their beginnings were cut off"
            )
        conditions = {
            "data": self._request.data or (benchmark.hub.name if benchmark.hub else ""),
            "items": counts.items,
            "tokens_scored": counts.tokens,
            "items_cut": counts.cut,
            "few_shot_examples": 0,
        }
        if len(counts.groups) > 1:
            conditions["items_of_groups"] = counts.groups
        return self._report(benchmark.name, benchmark.about, conditions, measured, digest, notes=notes)

    # Text.

    def _rules(self) -> WindowRules:
        """Return how text is scored. Raises ConfigError for what this model cannot do."""
        asked, room = self._settings.evaluation, int(self.found.config.n_positions)
        length = asked.context_length or room
        if length > room:
            raise ConfigError(
                f"evaluation.context_length is {length:,}; that of {self.model} is {room:,} tokens."
            )
        stride = asked.stride or max(1, length // 2)
        if stride > length:
            raise ConfigError(
                f"evaluation.stride is {stride:,}, more than the window of {length:,} tokens: those "
                "between would be left out."
            )
        return WindowRules(length, stride, asked.separator)

    def _test_text(self) -> Report:
        rules, digest = self._rules(), hashlib.sha256()
        scorer = TextScorer(self.load(), self.compute, rules)

        def pieces() -> Iterator[Piece]:
            documents = self.data.documents()
            if self._settings.evaluation.detokenizer == "wikitext":
                documents = detokenized(documents)
            return _first_documents(documents, self._request.limit)

        def hashed() -> Iterator[Piece]:
            for piece in pieces():
                digest.update(piece.text.encode() + b"\0" * piece.ends_document)
                yield piece

        # Of the first documents, only reading them would tell.
        total = self.data.text_bytes() if self._request.limit is None else None
        text = scorer.measure(hashed(), lambda done: self._progress("text", done, total, "bytes"))
        conditions = {
            "data": self.data.name,
            "documents": text.documents,
            "tokens_scored": text.tokens,
            "bytes": text.bytes,
            "characters": text.characters,
            "context_length": rules.context_length,
            "stride": rules.stride,
            "first_token": "predicted from end-of-text",
            "between_documents": "end-of-text, scored"
            if rules.separator is None
            else repr(rules.separator),
            "detokenizer": self._settings.evaluation.detokenizer,
        }
        return self._report("text", "how well text is predicted", conditions, text.measured, digest)

    # Labels, questions, conversations.

    def _test_labels(self) -> Report:
        test = LabelTest(self.model, self._runtime, self._request.labels, self._label_order)
        digest = hashlib.sha256()

        def items() -> Iterator[Any]:
            for item in islice(self.data.labelled(test.objective), self._request.limit):
                digest.update(repr((item.key, item.labels, item.number)).encode())
                yield item

        # A row is read in microseconds: a hundredth of what even a small model takes for it.
        total = sum(1 for _ in islice(self.data.labelled(test.objective), self._request.limit))
        result = test.measure(
            items(), lambda done: self._progress("labels", done, total, "texts"), self._on_sample
        )
        conditions = {"data": self.data.name, "items": result.count, "items_cut": result.cut}
        notes = []
        if result.cut:
            notes.append(
                f"{result.cut:,} texts are longer than the model's context: only the front was read"
            )
        return self._report(
            "labels",
            "how well texts are classified",
            conditions,
            result.measured,
            digest,
            details=result.details,
            notes=notes,
        )

    def _test_questions(self) -> Report:
        questions = list(islice(self.data.questions(), self._request.limit))
        if not questions:
            raise DataError(f"{self.data.name}: there is no question.")
        answerer = Answerer(self.model, self._settings.data, self._runtime)
        predictions, digest = {}, hashlib.sha256()
        answers = {
            str(number): [text for text, _ in question.answers]
            for number, question in enumerate(questions)
        }
        for number, (question, found) in enumerate(
            zip(questions, answerer.answer(questions), strict=True)
        ):
            predictions[str(number)] = found.answer or ""
            digest.update(repr((question.key, question.answers)).encode())
            self._on_sample(
                {
                    "test": "questions",
                    "where": question.where,
                    "question": question.question,
                    "answer": found.answer,
                    "probability": round(found.probability, 6),
                    "accepted": answers[str(number)],
                }
            )
            self._progress("questions", number + 1, len(questions), "questions")
        unanswerable = sum(not question.answers for question in questions)
        conditions = {
            "data": self.data.name,
            "items": len(questions),
            "unanswerable": unanswerable,
            "context_length": answerer.context_length,
            "stride": self._settings.data.stride,
        }
        measured = measure_answers(predictions, answers)
        about = "how well questions are answered, as SQuAD counts it"
        return self._report("questions", about, conditions, measured, digest)

    def _test_conversations(self) -> Report:
        loaded = self.load()
        items = list(islice(self.data.conversations(), self._request.limit))
        limit = LengthLimit(int(self.found.config.n_positions), "cut")
        chat_format = ChatFormat(loaded.tokenizer, self.model)
        noticed_items = noticed(items, "making examples", self._notify)
        examples = conversation_examples(noticed_items, chat_format, self.model, loaded.tokenizer, limit)
        if not len(examples):
            raise DataError(f"{self.data.name}: there is no conversation with an answer that fits.")
        digest = hashlib.sha256(repr([item.messages for item in items]).encode())
        measured = measure_targets(
            loaded,
            self.compute,
            examples,
            lambda done: self._progress("conversations", done, len(examples), "conversations"),
        )
        conditions = {
            "data": self.data.name,
            "items": len(examples),
            "items_cut": limit.cut,
            "items_dropped": limit.dropped,
        }
        about = "how well the assistant's words are predicted"
        return self._report("conversations", about, conditions, measured, digest)

    def _report(
        self,
        test: str,
        about: str,
        conditions: dict[str, Any],
        measured: Measured,
        digest: Any,
        *,
        details: dict[str, Any] | None = None,
        notes: list[str] | None = None,
    ) -> Report:
        self._progress(INTERVALS, 0, None, "draws")
        scores = scores_of(measured, seed=self._settings.runtime.seed)
        conditions["resampled"] = measured.unit
        return Report(
            test,
            about,
            conditions,
            scores,
            measured,
            digest.hexdigest()[:16],
            details or {},
            notes or [],
        )

    def provenance(self) -> dict[str, Any]:
        """Return what the scores depend on besides the data."""
        return {
            "model": self.model,
            "kind": self.found.kind,
            "model_sha256": self._sha256_of_weights(),
            "device": str(self.compute.device),
            "precision": self.compute.precision,
            "seed": self._settings.runtime.seed,
            "versions": library_versions(),
        }

    def _sha256_of_weights(self) -> str:
        """Return the hash of the files that hold the weights, one behind the other."""
        digest = hashlib.sha256()
        files = self.found.files
        done, total = 0, sum(path.stat().st_size for path in files)
        for path in files:
            with path.open("rb") as file:
                while block := file.read(HASHED_BYTES):
                    digest.update(block)
                    done += len(block)
                    if total > WORTH_A_BAR:
                        self._progress("hashing the model", done, total, "bytes")
        return digest.hexdigest()


def compare(
    first: list[Report], second: list[Report], *, seed: int, progress: OnProgress
) -> list[Comparison]:
    """Return how two models differ in each test.

    Raises ConfigError if their tests are not the same, DataError if their items are not.
    """
    comparisons = []
    for one, other in zip(first, second, strict=True):
        if one.test != other.test:  # The settings of a run say that it learnt from conversations.
            raise ConfigError(
                f"--compare: the first model is tested on {one.test}, the second on {other.test}; the "
                "tasks of their runs are not the same. Give both one task with --set task=TASK."
            )
        is_same = len(one.measured.items) == len(other.measured.items)
        if one.items_fingerprint != other.items_fingerprint or not is_same:
            raise DataError(
                f"{one.test}: the two models were tested on different items. Give the same --data."
            )
        progress(INTERVALS, 0, None, "draws")
        found = differences(one.measured, other.measured, seed=seed)
        items = one.conditions.get("items", len(one.measured.items))
        comparisons.append(Comparison(one.test, items, found))
    return comparisons


def _first_of_each_group(items: Iterable[Item], limit: int | None) -> Iterator[Item]:
    taken: dict[str, int] = {}
    for item in items:
        taken[item.group] = taken.get(item.group, 0) + 1
        if limit is None or taken[item.group] <= limit:
            yield item


def _first_documents(pieces: Iterable[Piece], limit: int | None) -> Iterator[Piece]:
    documents = 0
    for piece in pieces:
        yield piece
        documents += piece.ends_document
        if documents == limit:
            return
