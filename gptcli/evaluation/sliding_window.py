"""How well a model predicts text, in windows that overlap: perplexity and bits per byte.

1. Documents become one stream of tokens, an end-of-text token behind each; or, with a separator, one
   text, the separator between them.
2. A window of `context_length` tokens moves on by `stride`. Each token is scored once, in the first
   window that has it: beyond the first window, at least `context_length - stride` tokens stand before
   it. The very first token is predicted from end-of-text, so all tokens are scored.
3. What was measured is summed over units: documents, or every UNIT_BYTES of a longer one. Units are cut
   by bytes and not by tokens, so that models of different tokenizers are compared on the same ones.

Text streams through: memory does not grow with it, but for a few numbers a unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from gptcli.data.documents import Piece, pieces_of_text
from gptcli.errors import DataError, ModelError
from gptcli.evaluation.bootstrap import Measured, Metric
from gptcli.evaluation.next_token import NextTokenHead
from gptcli.models.loading import LoadedModel
from gptcli.models.scoring_forward import ScoringForward
from gptcli.training.device import Compute

T = TypeVar("T")

# Neighbouring tokens are hard or easy together; units should be large enough to be chance's draws, and
# small enough that a file of a megabyte has hundreds.
UNIT_BYTES = 4096
# Tokens that go through the model at once.
BATCH_TOKENS = {"cpu": 4096}
BATCH_TOKENS_GPU = 65_536
# Text that is tokenized together: its tokens, with their places, take 50 times the memory.
PIECES_AT_ONCE, CHARACTERS_AT_ONCE = 256, 2**20

NATS, TOKENS, BYTES, CHARACTERS = range(4)
METRICS = [
    Metric("loss", "mean over tokens, in nats", lambda sums: sums[:, NATS] / sums[:, TOKENS], False),
    Metric(
        "perplexity",
        "exp(loss); depends on the tokenizer",
        lambda sums: np.exp(sums[:, NATS] / sums[:, TOKENS]),
        False,
    ),
    Metric(
        "bits_per_byte",
        "bits of all tokens over UTF-8 bytes; comparable across tokenizers",
        lambda sums: sums[:, NATS] / math.log(2) / sums[:, BYTES],
        False,
    ),
    Metric(
        "bits_per_character",
        "the same over characters",
        lambda sums: sums[:, NATS] / math.log(2) / sums[:, CHARACTERS],
        False,
    ),
]


@dataclass(frozen=True)
class WindowRules:
    """How text is scored; see the module."""

    context_length: int
    stride: int
    """1 to context_length."""
    separator: str | None = None
    """None: an end-of-text token."""


@dataclass(frozen=True)
class MeasuredText:
    """What was measured of a text."""

    measured: Measured
    documents: int
    tokens: int
    """Scored, those for end-of-text included."""
    bytes: int
    characters: int


class TextScorer:
    """Scores text with a loaded causal model."""

    def __init__(self, loaded: LoadedModel, compute: Compute, rules: WindowRules) -> None:
        assert 1 <= rules.stride <= rules.context_length <= loaded.model.config.n_positions
        self._loaded = loaded
        self._device = compute.device
        self._rules = rules
        self._forward = ScoringForward(loaded.model, is_int8=compute.is_int8)
        self._head = NextTokenHead(loaded.model, is_int8=compute.is_int8)
        self._end_of_text: int = loaded.tokenizer.eos_token_id
        tokens = BATCH_TOKENS.get(compute.device.type, BATCH_TOKENS_GPU)
        self._windows_at_once = max(1, tokens // rules.context_length)

    def measure(
        self, pieces: Iterable[Piece], progress: Callable[[int], None] = lambda text_bytes: None
    ) -> MeasuredText:
        """Return what was measured of all documents.

        progress: called with the bytes of text that are done, often. Raises DataError if there
        is no text, ModelError for scores that are not finite.
        """
        units = _Units()
        done = 0
        for windows in _some(self._windows(self._stream(pieces, units)), self._windows_at_once):
            numbers, nats = self._score(windows)
            units.add(numbers, NATS, nats)
            units.add(numbers, TOKENS, np.ones(len(numbers)))
            done += len(numbers)
            progress(units.bytes_before(int(numbers[-1])))
        if not done:
            raise DataError("There is no text to score.")
        sums = units.sums
        return MeasuredText(
            Measured(sums, METRICS, f"documents, or every {UNIT_BYTES:,} bytes of a longer one"),
            documents=units.documents,
            tokens=done,
            bytes=int(sums[:, BYTES].sum()),
            characters=int(sums[:, CHARACTERS].sum()),
        )

    def _stream(self, pieces: Iterable[Piece], units: _Units) -> Iterator[np.ndarray]:
        """Yield (some, 2) int64: the tokens of all documents in order, and the unit of each."""
        separator = self._rules.separator
        joined = pieces if separator is None else _joined(pieces, separator)
        backend = self._loaded.tokenizer.backend_tokenizer
        for some in _tokenized_together(joined):
            encodings = backend.encode_batch([piece.text for piece in some], add_special_tokens=False)
            for piece, encoding in zip(some, encodings, strict=True):
                starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
                ids = np.array(encoding.ids, dtype=np.int64)
                self._loaded.check_token(int(ids.max(initial=0)), "the text")
                unit_of = units.of_piece(piece.text, starts)
                if piece.ends_document:
                    if separator is None:
                        ids = np.append(ids, self._end_of_text)
                        unit_of = np.append(unit_of, units.current)
                    units.end_document()
                yield np.stack([ids, unit_of], 1)

    def _windows(self, stream: Iterable[np.ndarray]) -> Iterator[_Window]:
        length, stride = self._rules.context_length, self._rules.stride
        # The token that a window begins with, and those after it: all but the last are its inputs.
        held = np.array([[self._end_of_text, 0]], dtype=np.int64)
        scored = 0  # Tokens of `held` behind its first that have been scored.
        for chunk in stream:
            held = np.concatenate([held, chunk])
            begin = 0
            while len(held) - begin > length + 1:
                yield _Window(held[begin : begin + length + 1], scored)
                begin, scored = begin + stride, length - stride
            held = held[begin:]
        if len(held) - 1 > scored:
            yield _Window(held, scored)

    @torch.inference_mode()
    def _score(self, windows: list[_Window]) -> tuple[np.ndarray, np.ndarray]:
        """Return the units of the windows' scored tokens, and the nats of each."""
        width = max(len(window.tokens) for window in windows) - 1
        inputs = np.zeros((len(windows), width), np.int64)
        kept = []
        for row, window in enumerate(windows):
            inputs[row, : len(window.tokens) - 1] = window.tokens[:-1, 0]
            kept.append(np.arange(window.scored, len(window.tokens) - 1) + row * width)
        # No mask: padding is on the right, where causal attention never looks.
        hidden = self._forward.hidden_states(self._tensor(inputs), self._tensor(np.concatenate(kept)))
        targets = np.concatenate([window.targets for window in windows])
        log_probabilities, _ = self._head.log_probabilities(
            hidden, torch.arange(len(targets), device=self._device), self._tensor(targets[:, 0])
        )
        if not log_probabilities.isfinite().all():
            raise ModelError(
                f"{self._loaded.name}: its scores are not finite. Its weights are damaged, or too large "
                "for this --precision; try --precision fp32."
            )
        return targets[:, 1], -log_probabilities.double().cpu().numpy()

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


@dataclass(frozen=True)
class _Window:
    tokens: np.ndarray
    """(context_length + 1 or fewer, 2): token and unit; the last is predicted and predicts nothing."""
    scored: int
    """So many of those behind the first have been scored before."""

    @property
    def targets(self) -> np.ndarray:
        return self.tokens[1 + self.scored :]


class _Units:
    """Sums over units, which come one after the other."""

    def __init__(self) -> None:
        self.current = 0
        self.documents = 0
        self._in_document = 0  # Bytes of the current document so far.
        self._first_of_document = 0
        self._sums = np.zeros((1024, 4))

    @property
    def sums(self) -> np.ndarray:
        """(units, 4): NATS, TOKENS, BYTES, CHARACTERS."""
        used = self._sums[: self.current + 1]
        return used[used[:, BYTES] > 0]

    def bytes_before(self, unit: int) -> int:
        """Return the bytes of the units that come before one."""
        return int(self._sums[:unit, BYTES].sum())

    def of_piece(self, text: str, starts: np.ndarray) -> np.ndarray:
        """Count a piece of the current document, and return the unit of each of its tokens.

        starts: (tokens,), the character that each begins with.
        """
        if not text:
            return np.zeros(0, np.int64)
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        sizes = np.ones(len(code_points), np.int64)
        for limit in (0x80, 0x800, 0x10000):
            sizes += code_points >= limit
        before = self._in_document + sizes.cumsum() - sizes
        unit_of = self._first_of_document + before // UNIT_BYTES
        self._in_document += int(sizes.sum())
        self.current = int(unit_of[-1])
        self.add(unit_of, BYTES, sizes)
        self.add(unit_of, CHARACTERS, np.ones(len(sizes)))
        found: np.ndarray = unit_of[starts]
        return found

    def end_document(self) -> None:
        self.documents += 1
        self._in_document = 0
        self.current += 1
        self._first_of_document = self.current

    def add(self, units: np.ndarray, column: int, values: np.ndarray) -> None:
        """Add (n,) values to the sums of (n,) units, in ascending order."""
        if not len(units):
            return
        while units[-1] >= len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        first = int(units[0])
        sums = np.bincount(units - first, values)
        self._sums[first : first + len(sums), column] += sums


def _joined(pieces: Iterable[Piece], separator: str) -> Iterator[Piece]:
    """Yield all documents as one, with the separator between."""

    def chunks() -> Iterator[str]:
        is_between = False
        for piece in pieces:
            yield (separator if is_between else "") + piece.text
            is_between = piece.ends_document

    return pieces_of_text(chunks())


def _tokenized_together(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    some: list[Piece] = []
    characters = 0
    for piece in pieces:
        some.append(piece)
        characters += len(piece.text)
        if len(some) == PIECES_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
    if some:
        yield some


def _some(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """Yield lists of `count` items."""
    some: list[T] = []
    for item in items:
        some.append(item)
        if len(some) == count:
            yield some
            some = []
    if some:
        yield some
