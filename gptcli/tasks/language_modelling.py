"""Language modelling: predict the next token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from gptcli.config.schema import Settings
from gptcli.data.batches import TrainingBatches, evaluation_batches
from gptcli.data.preparation import prepare_text
from gptcli.data.progress import Notify
from gptcli.data.token_store import TokenStore
from gptcli.errors import DataError
from gptcli.evaluation.perplexity import score_text
from gptcli.models.starting import StartingModel
from gptcli.tasks.assembly import TaskData, TokenTask, assemble_job
from gptcli.training.device import Compute
from gptcli.training.job import DataSize, Evaluation, Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class HeldOutText:
    """The text that evaluations score."""

    store: TokenStore
    tokenizer: PreTrainedTokenizerFast
    context_length: int
    max_tokens: int | None = None
    """Only the first tokens are scored; all if None."""

    @property
    def scored_bytes(self) -> int:
        """UTF-8 bytes of the text that the scored tokens stand for."""
        if self.max_tokens is None or self.max_tokens >= self.store.token_count:
            return self.store.count.bytes
        scored = self.tokenizer.decode(
            self.store.read_circular(0, self.max_tokens).tolist(),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return max(1, len(str(scored).encode()))


class LanguageModelling(TokenTask):
    """Pretraining, and going on with it: every token of the text is predicted from those before it."""

    def __init__(
        self,
        batches: TrainingBatches,
        compute: Compute,
        held_out: HeldOutText | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(batches, compute, label_smoothing)
        self._held_out = held_out

    def evaluate(
        self, model: nn.Module, micro_batch_size: int, between_batches: Callable[[], None]
    ) -> Evaluation | None:
        """Return loss, perplexity and bits_per_byte on the held-out text; None if there is none."""
        held_out = self._held_out
        if held_out is None:
            return None
        score = score_text(
            model,
            self,
            evaluation_batches(
                held_out.store,
                context_length=held_out.context_length,
                batch_size=micro_batch_size,
                max_tokens=held_out.max_tokens,
            ),
            held_out.scored_bytes,
            self._compute,
            between_batches,
        )
        return Evaluation(score.as_dict())


def build_job(settings: Settings, compute: Compute, notify: Notify) -> Job:
    """Return the job of learning the text in data.source."""
    start = StartingModel(settings)
    context_length = start.context_length
    text = prepare_text(settings, notify, start.tokenizer())
    tokens = text.train.token_count
    if tokens < context_length:
        # There is next to nothing to learn from it.
        raise DataError(
            f"{', '.join(text.ledger.sources)}: the training text has {tokens} tokens, less than one "
            f"sequence of model.context_length {context_length}. Add text, or lower context_length."
        )
    held_out = None
    if text.validation is not None:
        max_tokens = settings.evaluation.max_tokens
        held_out = HeldOutText(text.validation, text.tokenizer, context_length, max_tokens)
    batches = TrainingBatches(
        text.train,
        context_length=context_length,
        batch_size=settings.training.batch_size,
        seed=settings.runtime.seed,
    )
    task = LanguageModelling(batches, compute, held_out, settings.training.label_smoothing)
    trainable = start.load("language-modelling", text.tokenizer)
    sequences = batches.sequences_per_epoch
    positions = sequences * context_length
    ledger = {
        **text.ledger.as_dict(),
        "epoch": {
            "sequences": sequences,
            "padding_tokens": positions - tokens,
            "tokens_lost": max(0, tokens - positions),
        },
    }
    data = TaskData(
        context_length=context_length,
        longest=context_length,
        sequences_per_epoch=sequences,
        fingerprint=text.data_fingerprint,
        train=DataSize(tokens),
        validation=DataSize(text.ledger.validation.tokens),
        ledger=ledger,
        summary=[
            ("training text", f"{tokens:,} tokens"),
            ("held-out text", f"{text.ledger.validation.tokens:,} tokens"),
        ],
    )
    tokenizer = text.tokenizer

    def prompt_ids(prompt: str) -> list[int]:
        # An empty prompt starts from end-of-text, as in `gptcli generate`.
        return tokenizer.encode(prompt, add_special_tokens=False) or [tokenizer.eos_token_id]

    return assemble_job(settings, compute, task, trainable, tokenizer, data, prompt_ids)
