"""Choosing the next token from the model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.data.batches import mix

# Below it nothing changes: only the likeliest token is left, and 1e-46 is 0 in float32.
SMALLEST_TEMPERATURE = 1e-30
FIRST_LIKELIEST = 512


@dataclass(frozen=True)
class Sampling:
    """How to choose. With none of the three given, the likeliest token is taken (greedy)."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature is None and self.top_k is None and self.top_p is None

    def choose(self, logits: Tensor, draws: Sequence[float]) -> list[int]:
        """Return an id for each row of `logits`, (sequences, vocabulary).

        draws: a number in [0, 1) for each, which decides alone; `uniform` makes them. The token is the
        one at which the sum of the probabilities passes it: no row depends on those beside it.
        """
        if self.is_greedy:
            # Together: a device is waited for with each number that is read.
            ids: list[int] = logits.argmax(dim=-1).tolist()
            return ids
        # On the CPU: not every device has float64.
        sums = self.filter(logits.float()).softmax(dim=-1).cpu().double().cumsum(dim=-1)
        wanted = torch.tensor(draws, dtype=torch.double)[:, None] * sums[:, -1:]
        return [int(token_id) for token_id in torch.searchsorted(sums, wanted, right=True)[:, 0]]

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
            logits = logits.masked_fill(~_likeliest_that_reach(self.top_p, logits), -torch.inf)
        return logits


def uniform(*words: int) -> float:
    """Return a number in [0, 1) that the integers alone decide, on every machine the same."""
    # 32 bits: times a sum of probabilities, in float64, it stays below that sum.
    return (mix(*words) >> 32) / 2**32


def _likeliest_that_reach(top_p: float, logits: Tensor) -> Tensor:
    """Return (rows, vocabulary) bool: the fewest likeliest tokens whose probabilities reach `top_p`.

    Among equals the first are taken.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    # Most often a few hundred tokens are enough, and finding them takes less than sorting all.
    count = logits.shape[-1]
    for some in (min(FIRST_LIKELIEST, count), count):
        ordered = logits.topk(some).values
        probabilities = (ordered - total).exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        if some == count or bool((before[:, -1] >= top_p).all()):
            break
    last = ordered.gather(-1, ((before < top_p).sum(dim=-1, keepdim=True) - 1).clamp_min(0))
    is_equal = logits == last
    room = (before < top_p).sum(dim=-1, keepdim=True) - (logits > last).sum(dim=-1, keepdim=True)
    return (logits > last) | (is_equal & (is_equal.cumsum(dim=-1) <= room))
