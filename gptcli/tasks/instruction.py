"""Instruction tuning: what the assistant says in a conversation is learnt, and where it ends.

A conversation is written as the model's chat template has it, or the default one, which is then saved
with the model. Only the assistant's words, and the end-of-text after them, are targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from gptcli.config.schema import Settings
from gptcli.data.batches import IGNORED
from gptcli.data.conversations import ConversationItem, parse_conversations
from gptcli.data.examples import Example, ExampleBatches, Examples, evaluation_batches
from gptcli.data.items import LengthLimit, read_items, report_items, shortened
from gptcli.data.progress import Notify, noticed
from gptcli.errors import ModelError
from gptcli.evaluation.perplexity import score_text
from gptcli.generation.conversation import DEFAULT_CHAT_TEMPLATE, ChatFormat
from gptcli.models.starting import StartingModel
from gptcli.tasks.assembly import TaskData, TokenTask, assemble_job, choose_tokenizer
from gptcli.training.device import Compute
from gptcli.training.job import Evaluation, Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Instruction(TokenTask):
    """Learns the assistant's words in the conversations of `batches`."""

    def __init__(
        self,
        batches: ExampleBatches,
        validation: Examples,
        validation_bytes: int,
        compute: Compute,
        label_smoothing: float = 0.0,
    ) -> None:
        """validation_bytes: UTF-8 bytes of what is learnt of the held-out conversations."""
        super().__init__(batches, compute, label_smoothing)
        self._validation = validation
        self._validation_bytes = validation_bytes

    def evaluate(
        self, model: nn.Module, micro_batch_size: int, between_batches: Callable[[], None]
    ) -> Evaluation | None:
        """Return loss, perplexity and bits_per_byte of the assistant's words; None without any."""
        if not len(self._validation):
            return None
        batches = (
            batch
            for _, batch in evaluation_batches(
                self._validation, micro_batch_size * self._validation.longest
            )
        )
        score = score_text(model, self, batches, self._validation_bytes, self._compute, between_batches)
        return Evaluation(score.as_dict())


def segments(item: ConversationItem, chat_format: ChatFormat, name: str) -> Iterator[tuple[str, bool]]:
    """Yield the conversation as (text, whether it is learnt), up to its last reply.

    Each text is tokenized by itself: what is learnt follows the very tokens that it will follow in use.
    Raises ModelError for a template that writes the beginning of a conversation in another way once it
    goes on; name: what errors call the model.
    """
    messages = item.as_dicts()
    written = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = chat_format.text(messages[:number], asks_for_reply=True)
        answered = chat_format.text(messages[: number + 1], asks_for_reply=False)
        if not (asked.startswith(written) and answered.startswith(asked)):
            raise ModelError(
                f"{name}: its chat template does not continue a conversation as it began it "
                f"({item.where}), so it cannot be seen what the assistant's words are."
            )
        yield asked[len(written) :], False
        yield answered[len(asked) :], True
        written = answered


def build_job(settings: Settings, compute: Compute, notify: Notify) -> Job:
    """Return the job of learning the answers in the conversations of data.source."""
    start = StartingModel(settings)
    items = read_items(settings, parse_conversations, notify)
    texts = (content for item in items.train for _, content in item.messages)
    tokenizer = choose_tokenizer(settings, start, texts, notify)
    name = settings.model.name or "the new model"
    chat_format = ChatFormat(tokenizer, name)
    limit = LengthLimit(start.context_length, settings.data.too_long)
    train, validation = (
        conversation_examples(
            noticed(part, f"making {split} examples", notify), chat_format, name, tokenizer, limit
        )
        for part, split in ((items.train, "training"), (items.validation, "held-out"))
    )
    sample = "".join(
        f"[[{text}]]" if is_learnt else text
        for text, is_learnt in segments(items.train[0], chat_format, name)
    )
    report = report_items(items, train, validation, limit, sample=shortened(sample, 600))
    if not chat_format.is_own:
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    trainable = start.load("language-modelling", tokenizer)
    training = settings.training
    batches = ExampleBatches(train, batch_size=training.batch_size, seed=settings.runtime.seed)
    task = Instruction(
        batches,
        validation,
        _bytes_learnt(validation, tokenizer),
        compute,
        training.label_smoothing,
    )
    data = TaskData.of(train, validation, limit, report)

    def prompt_ids(prompt: str) -> list[int]:
        return chat_format.token_ids([{"role": "user", "content": prompt}], asks_for_reply=True)

    return assemble_job(settings, compute, task, trainable, tokenizer, data, prompt_ids)


def conversation_examples(
    items: Iterable[ConversationItem],
    chat_format: ChatFormat,
    name: str,
    tokenizer: PreTrainedTokenizerFast,
    limit: LengthLimit,
) -> Examples:
    """Return the conversations as tokens, of which the assistant's are targets.

    name: what errors call the model.
    """
    examples = []
    for item in items:
        ids: list[int] = []
        learnt: list[int] = []
        for text, is_learnt in segments(item, chat_format, name):
            part = tokenizer.encode(text, add_special_tokens=False)
            ids += part
            learnt += part if is_learnt else [IGNORED] * len(part)
        # The last token is a target only.
        kept = limit.fit(len(ids) - 1, item.where)
        targets = np.array(learnt[1 : kept + 1])
        if kept and (targets == IGNORED).all():  # The cut has left nothing to learn.
            limit.cut -= 1
            limit.dropped += 1
            limit.tokens_lost += kept
            kept = 0
        if kept:
            examples.append(Example(ids[:kept], targets, item.where))
    return Examples(examples, is_token_by_token=True)


def _bytes_learnt(examples: Examples, tokenizer: PreTrainedTokenizerFast) -> int:
    targets = examples.targets[examples.targets != IGNORED].tolist()
    text = tokenizer.decode(targets, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return max(1, len(str(text).encode()))
