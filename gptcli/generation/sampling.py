"""Choosing the next token from the model's logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Below it nothing changes: only the likeliest token is left, and 1e-46 is 0 in float32.
SMALLEST_TEMPERATURE = 1e-30


@dataclass(frozen=True)
class Sampling:
    """How to choose. With none of the three given, the likeliest token is taken (greedy)."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature is None and self.top_k is None and self.top_p is None

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Return (sequences,) ids, one for each row of `logits`, (sequences, vocabulary).

        Draws on the CPU, so that a seed gives the same numbers on every device.
        """
        if self.is_greedy:
            return logits.argmax(dim=-1)
        probabilities = self.filter(logits.float()).softmax(dim=-1).cpu()
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)

    def filter(self, logits: Tensor) -> Tensor:
        """Return logits, less their maximum, over the temperature; -inf is never to be chosen.

        In the order of Hugging Face's `generate`: temperature, top-k, top-p. Top-k keeps ties with the
        k-th; top-p keeps the fewest likeliest tokens whose probabilities add up to p or more
        (Holtzman et al., "The curious case of neural text degeneration", 2020).
        """
        if self.temperature is not None:
            # Relative to the likeliest: a temperature close to 0 must not overflow.
            logits = logits - logits.max(dim=-1, keepdim=True).values
            logits = logits / max(self.temperature, SMALLEST_TEMPERATURE)
        if self.top_k is not None:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = logits.sort(descending=True, stable=True)
            probabilities = ordered.softmax(dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities
            dropped = (before >= self.top_p).scatter(-1, order, before >= self.top_p)
            logits = logits.masked_fill(dropped, -torch.inf)
        return logits
