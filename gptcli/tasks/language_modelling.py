"""Language modelling: predict the next token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gptcli.data.batches import Batch, TrainingBatches, evaluation_batches, target_tokens
from gptcli.data.token_store import TokenStore
from gptcli.evaluation.perplexity import score_text
from gptcli.training.device import Compute
from gptcli.training.loss import summed_cross_entropy

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


class LanguageModelling:
    """The task of pretraining. Every token of the text is predicted from those before it."""

    def __init__(
        self, batches: TrainingBatches, compute: Compute, held_out: HeldOutText | None = None
    ) -> None:
        self._batches = batches
        self._compute = compute
        self._held_out = held_out

    def batch(self, step: int) -> Batch:
        return self._batches.batch(step)

    def describe_batch(self, step: int) -> str:
        return self._batches.describe(step)

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        device = self._compute.device
        input_ids = torch.from_numpy(batch.input_ids).to(device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        # No attention mask: padding is on the right, where causal attention never looks, and a mask
        # would leave the fast attention path.
        logits = model(input_ids=input_ids, use_cache=False).logits
        return summed_cross_entropy(logits, targets)

    def target_weight(self, batch: Batch) -> float:
        return target_tokens(batch)

    def evaluate(
        self, model: nn.Module, micro_batch_size: int, between_batches: Callable[[], None]
    ) -> dict[str, float] | None:
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
        return {
            "loss": score.loss,
            "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte,
        }
