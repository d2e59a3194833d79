"""How long texts are, and how they fit the model's context: what is cut, what is padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gptcli.data.batches import Batch
from gptcli.inspection.findings import Finding, share

MUCH_LOST = 0.1
"""From this share of the tokens on, what is lost is a problem."""
MUCH_PADDING = 0.5
LEAST_BYTES_PER_TOKEN = 2.0
"""GPT-2's tokens have 4 bytes of English, and 1.5 of Chinese, of which they were not made."""


@dataclass(frozen=True)
class Lengths:
    """How a length is distributed. The median, and what 90 in 100 do not exceed, do occur."""

    shortest: int
    median: int
    ninety_percent: int
    longest: int
    total: int

    @classmethod
    def of(cls, lengths: Iterable[int] | np.ndarray) -> Lengths | None:
        """Return the distribution; None of nothing."""
        values = np.array(lengths)
        if not len(values):
            return None
        shortest, median, ninety, longest = np.percentile(values, [0, 50, 90, 100], method="higher")
        return cls(int(shortest), int(median), int(ninety), int(longest), int(values.sum()))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"shortest {self.shortest:,}, median {self.median:,}, 90% {self.ninety_percent:,}, "
            f"longest {self.longest:,}"
        )


@dataclass(frozen=True)
class Padding:
    """How much of what the model computes is padding."""

    padding_tokens: int
    positions: int
    """All tokens, padding included."""
    micro_batch_size: int | None = None
    """What was padded to the same length together; None where nothing is."""

    @property
    def share(self) -> float:
        return self.padding_tokens / self.positions if self.positions else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


def padding_of(batches: Iterable[Batch], micro_batch_size: int) -> Padding:
    """Return the padding in batches that are computed in micro-batches of that many sequences."""
    tokens = positions = 0
    for batch in batches:
        for micro in batch.split(micro_batch_size):
            tokens += micro.token_count
            positions += micro.input_ids.size
    return Padding(positions - tokens, positions, micro_batch_size)


@dataclass(frozen=True)
class Fit:
    """What does not fit the model's context."""

    context_length: int
    sequences: int
    """That were looked at."""
    cut: int
    dropped: int
    tokens_lost: int
    tokens: int
    """Of all of them, before any cut."""


def fit_findings(fit: Fit) -> Iterator[Finding]:
    """Yield what is to be said of that."""
    lost = fit.tokens_lost / fit.tokens if fit.tokens else 0.0
    if not fit.cut and not fit.dropped:
        yield Finding("ok", "length", f"everything fits the context of {fit.context_length:,} tokens")
        return
    what, count = ("cut", fit.cut) if fit.cut else ("dropped", fit.dropped)
    yield Finding(
        "problem" if lost >= MUCH_LOST else "warning",
        "length",
        f"{count:,} of {fit.sequences:,} ({share(count, fit.sequences)}) are longer than the context of "
        f"{fit.context_length:,} tokens and are {what}: {fit.tokens_lost:,} tokens "
        f"({share(fit.tokens_lost, fit.tokens)}) are lost",
        advice="A larger model.context_length keeps more, if the model has it; else shorten the texts.",
    )


def padding_findings(padding: Padding) -> Iterator[Finding]:
    size = padding.micro_batch_size
    within = "" if size is None else f" in micro-batches of {size:,}"
    if padding.share < MUCH_PADDING:
        yield Finding(
            "ok", "padding", f"{share(padding.share, 1)} of what is computed is padding{within}"
        )
        return
    yield Finding(
        "warning",
        "padding",
        f"{share(padding.share, 1)} of what is computed is padding{within}",
        advice="A smaller training.micro_batch_size puts fewer short texts beside long ones.",
    )


def tokenizer_findings(tokens: int, text_bytes: int, script: str | None) -> Iterator[Finding]:
    """Yield whether the tokenizer suits the text. script: the most frequent."""
    per_token = text_bytes / tokens if tokens else 0.0
    message = f"{per_token:.2f} bytes of text a token"
    if per_token >= LEAST_BYTES_PER_TOKEN:
        yield Finding("ok", "tokenizer", message)
        return
    yield Finding(
        "warning",
        "tokenizer",
        f"{message}: text in {script or 'no script'} gets long in this tokenizer",
        advice="Train one on such text, or one of more tokens (tokenizer.train.vocab_size).",
    )
