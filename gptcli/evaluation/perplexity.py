"""How well a model predicts text: loss, perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from gptcli.data.batches import Batch, target_tokens
from gptcli.training.device import Compute
from gptcli.training.loop import Task


@dataclass(frozen=True)
class TextScore:
    """The score of a text, every token of it predicted exactly once."""

    loss: float
    """Mean over tokens, in nats. Depends on the tokenizer: compare it within one only."""
    tokens: int
    bytes: int
    """UTF-8 bytes of the text that the tokens stand for."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite if that is beyond a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for the text, over its bytes: comparable across tokenizers.

        The end-of-text tokens' bits count as well: without them a text could not be told apart.
        """
        return self.loss * self.tokens / math.log(2) / self.bytes

    def as_dict(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
        }


@torch.inference_mode()
def score_text(
    model: nn.Module,
    task: Task,
    batches: Iterable[Batch],
    text_bytes: int,
    compute: Compute,
    between_batches: Callable[[], None] = lambda: None,
) -> TextScore:
    """Return the score of the text in `batches`, which has `text_bytes` bytes. Dropout is off.

    between_batches: called before each; raising from it is how an evaluation is left.
    """
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        between_batches()
        with compute.autocast():
            total += task.summed_loss(model, batch).item()
        tokens += target_tokens(batch)
    return TextScore(total / tokens, tokens, text_bytes)
