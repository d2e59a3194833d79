"""What a model is tested on: a file, or what its own training held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from gptcli.config.schema import Settings
from gptcli.data.conversations import ConversationItem, parse_conversations
from gptcli.data.documents import Piece, read_documents, text_bytes
from gptcli.data.items import Item, Items, Parse, read_items
from gptcli.data.labelled_texts import LabelledText, LabelledTexts, Objective
from gptcli.data.ledger import Reading
from gptcli.data.preparation import PreparedText, prepare_text
from gptcli.data.progress import PreparationProgress
from gptcli.data.questions import Question, Questions
from gptcli.data.sources import find_sources
from gptcli.data.token_store import TokenStore
from gptcli.data.tokenizing import load_tokenizer
from gptcli.errors import ConfigError, DataError
from gptcli.models.loading import find_model
from gptcli.tasks.classification import read_labelled
from gptcli.tasks.question_answering import read_questions
from gptcli.training.run_folder import config_of_run

I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass
class TestedData:
    """The data of one test."""

    model: str
    settings: Settings
    source: str | None
    """What is tested on; None: what the run `model` held out, with its settings."""
    notify: Callable[[PreparationProgress], None] = lambda progress: None
    reading: Reading = field(default_factory=Reading)

    @property
    def name(self) -> str:
        return f"what {self.model} held out" if self.source is None else self.source

    def check(self) -> None:
        """Raise ConfigError if there is nothing to test on, DataError if it is not there."""
        if self.source is not None:
            find_sources(self.source, self.settings.data, Reading(), name="--data")
        elif config_of_run(self.model) is None:
            raise ConfigError(
                f"{self.model} is a model and no run, so it is not known what was held out. Give --data "
                "SOURCE or --benchmark NAME."
            )

    def check_training(self, source: str | None) -> None:
        """Raise ConfigError if there is no training text to read, DataError if `source` is not there."""
        if source is not None:
            find_sources(source, self.settings.data, Reading(), name="--train-data")
        elif config_of_run(self.model) is None:
            raise ConfigError(
                f"{self.model} is no run, which knows its training text. Give --train-data."
            )

    def documents(self) -> Iterator[Piece]:
        """Yield the text. Raises DataError for what cannot be read, or if nothing was held out."""
        if self.source is not None:
            sources = find_sources(self.source, self.settings.data, self.reading, name="--data")
            yield from read_documents(sources, self.settings.data, self.reading)
            return
        prepared = self._prepared
        if prepared.validation is None:
            raise self._nothing_held_out()
        yield from decoded(prepared, prepared.validation)

    def text_bytes(self) -> int | None:
        """Return about how many bytes `documents` has; None if only reading it tells."""
        if self.source is not None:
            return self._bytes_of(self.source, "--data")
        held_out = self._prepared.validation
        return None if held_out is None else held_out.count.bytes

    def labelled(self, objective: Objective) -> Iterator[LabelledText]:
        """Yield the texts with their labels. Raises as `documents` does."""
        if self.source is None:
            return self._held_out(self._labelled_of_run)
        return self._parsed(LabelledTexts(objective).parse)

    def questions(self) -> Iterator[Question]:
        """Yield the questions with their answers. Raises as `documents` does."""
        if self.source is None:
            return self._held_out(self._questions_of_run)
        return self._parsed(Questions().parse)

    def conversations(self) -> Iterator[ConversationItem]:
        """Yield the conversations. Raises as `documents` does."""
        if self.source is None:
            return self._held_out(self._conversations_of_run)
        return self._parsed(parse_conversations)

    def trained_on(self, source: str | None) -> Iterator[Piece]:
        """Yield the training text: that of `source`, or what the run was trained on.

        Raises as `check_training` does.
        """
        self.check_training(source)
        if source is not None:
            data = self.settings.data
            yield from read_documents(
                find_sources(source, data, Reading(), name="--train-data"), data, Reading()
            )
            return
        match self.settings.task:
            case "language-modelling":
                yield from decoded(self._prepared, self._prepared.train)
            case "classification":
                for item in self._labelled_of_run.train:
                    yield Piece(f"{item.text}\n{item.text_pair or ''}", True)
            case "question-answering":
                for question in self._questions_of_run.train:
                    yield Piece(f"{question.question}\n{question.context}", True)
            case "instruction":
                for talk in self._conversations_of_run.train:
                    yield Piece("\n".join(content for _, content in talk.messages), True)

    def training_bytes(self, source: str | None) -> int | None:
        """Return about how many bytes `trained_on` has; None if only reading it tells."""
        if source is not None:
            return self._bytes_of(source, "--train-data")
        if self.settings.task == "language-modelling":
            return self._prepared.train.count.bytes
        return sum(len(piece.text.encode()) for piece in self.trained_on(source))

    def _bytes_of(self, source: str, name: str) -> int | None:
        return text_bytes(
            find_sources(source, self.settings.data, Reading(), name=name), self.settings.data
        )

    @cached_property
    def _prepared(self) -> PreparedText:
        # A model that was not new has kept its tokenizer.
        has_start = self.settings.model.name is not None
        tokenizer = load_tokenizer(find_model(self.model).name) if has_start else None
        return prepare_text(self.settings, self.notify, tokenizer)

    def _parsed(self, parse: Parse[I]) -> Iterator[I]:
        assert self.source is not None
        for source in find_sources(self.source, self.settings.data, self.reading, name="--data"):
            yield from parse(source, self.settings.data, self.reading)

    @cached_property
    def _labelled_of_run(self) -> Items[LabelledText]:
        return read_labelled(self.settings, self.notify)[0]

    @cached_property
    def _questions_of_run(self) -> Items[Question]:
        return read_questions(self.settings, self.notify)[0]

    @cached_property
    def _conversations_of_run(self) -> Items[ConversationItem]:
        return read_items(self.settings, parse_conversations, self.notify)

    def _held_out(self, items: Items[I]) -> Iterator[I]:
        if not items.validation:
            raise self._nothing_held_out()
        return iter(items.validation)

    def _nothing_held_out(self) -> DataError:
        return DataError(f"{self.model} held nothing out (data.validation_fraction 0). Give --data.")


def decoded(prepared: PreparedText, store: TokenStore) -> Iterator[Piece]:
    """Yield the documents of a token store as text."""
    begin = 0
    for end in store.document_ends.tolist():
        ids = store.read_circular(begin, end - begin)[:-1].tolist()  # Without end-of-text.
        text = prepared.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        yield Piece(str(text), True)
        begin = end
