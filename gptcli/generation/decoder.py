"""Decoding: prompts of any length become text together, token by token.

1. Prompts are read in groups of about the same length. Sequences of one prompt share that reading.
2. A step makes one token for each of the rows that are under way. A row that ends makes room for the
   next sequence at once (continuous batching), so that no row waits for a longer one.
3. What is chosen depends on the row's own text, seed, and number of the token alone: not on the rows
   beside it, nor on their order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptcli.errors import ModelError
from gptcli.generation.prompt_lookup import PromptLookup
from gptcli.generation.sampling import Sampling, uniform
from gptcli.models.decoding_forward import DecodingForward, KeysAndValues

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gptcli.models.loading import LoadedModel
    from gptcli.training.device import Compute

END_OF_TEXT, LENGTH, CONTEXT, STOPPED = "end_of_text", "length", "context", "stopped"

# Prompts that are looked at together, so that those of about the same length are read together. The
# first of a file may be the last of them: until then no text is whole, in the order of the file.
REQUESTS_AT_ONCE = 128
# Padding included, of a group of prompts that are read together.
PROMPT_TOKENS_AT_ONCE = 4096
# Rows under way: more share the reading of the weights, and take more memory.
MAX_ROWS = 64
MAX_BYTES = 2**30
# Room grows by as many tokens at a time.
CAPACITY_STEP = 64


@dataclass(frozen=True)
class Request:
    """A prompt to continue, as tokens, at least one and fewer than the context has."""

    prompt_ids: list[int]
    max_new_tokens: int
    sequences: int = 1
    seed: int = 0


@dataclass(frozen=True)
class NewToken:
    """A token of one continuation. Requests and the sequences of each are counted from 0."""

    request: int
    sequence: int
    token_id: int


@dataclass(frozen=True)
class Finished:
    """A continuation has ended: "end_of_text", "length" (as many as asked for), "context" (full) or
    "stopped" (by who takes the tokens)."""

    request: int
    sequence: int
    reason: str


@dataclass
class _Row:
    """A sequence under way, or about to be."""

    number: int
    sequence: int
    request: Request
    ids: list[int]
    """The prompt and what has been made of it."""
    made: int = 0
    lookup: PromptLookup | None = None

    @property
    def seen(self) -> int:
        """Tokens whose keys and values are there: all but the last one that was made."""
        return len(self.ids) - min(self.made, 1)

    @property
    def most_tokens(self) -> int:
        return len(self.request.prompt_ids) + self.request.max_new_tokens


@dataclass
class _ReadPrompt:
    """A sequence whose prompt has been read, with where what it left lies."""

    row: _Row
    earlier: KeysAndValues
    earlier_row: int
    logits: Tensor = field(repr=False)
    """(vocabulary,), of the first new token."""


class Decoder:
    """A GPT2LMHeadModel laid out for decoding."""

    def __init__(
        self, model: Any, end_of_text_id: int, dtype: torch.dtype, *, is_int8: bool = False
    ) -> None:
        """end_of_text_id: ends a continuation, and is no part of it; -1 if nothing does.

        dtype, is_int8: as for DecodingForward.
        """
        self._forward = DecodingForward(model, dtype, is_int8=is_int8)
        self._end_of_text_id = end_of_text_id

    @classmethod
    def of(cls, loaded: LoadedModel, compute: Compute) -> Decoder:
        """Return that of a loaded GPT2LMHeadModel: its precision, its tokenizer's end of text."""
        end_of_text_id = int(loaded.tokenizer.eos_token_id)
        return cls(loaded.model, end_of_text_id, compute.dtype, is_int8=compute.is_int8)

    def decode(
        self,
        requests: Iterable[Request],
        sampling: Sampling,
        *,
        slides: bool = False,
        stopped: Container[tuple[int, int]] = (),
    ) -> Iterator[NewToken | Finished]:
        """Yield the tokens of all continuations as they are made.

        A single greedy continuation that repeats what stands before takes fewer steps (`prompt_lookup`).
        slides: whether a text that fills the context goes on behind its last half, which is read again
        from the first position on; else it ends there. stopped: (request, sequence) of continuations
        that are wanted no longer; who takes the tokens may add to it meanwhile. Raises ModelError if
        scores are not finite.
        """
        return _Decoding(self._forward, self._end_of_text_id, sampling, slides, stopped).run(requests)


class _Decoding:
    """One run of a decoder, and what is under way in it."""

    def __init__(
        self,
        forward: DecodingForward,
        end_of_text_id: int,
        sampling: Sampling,
        slides: bool,
        stopped: Container[tuple[int, int]],
    ) -> None:
        self._forward, self._end_of_text_id = forward, end_of_text_id
        self._sampling, self._slides, self._stopped = sampling, slides, stopped
        self._rows: list[_Row] = []
        self._earlier = forward.new_keys_and_values(0, 0)

    def run(self, requests: Iterable[Request]) -> Iterator[NewToken | Finished]:
        prompts = self._read_prompts(enumerate(requests))
        waiting = next(prompts, None)
        while True:
            admitted = []
            while waiting is not None and self._has_room_for(waiting.row):
                self._admit(waiting)
                admitted.append(waiting.logits)
                waiting = next(prompts, None)
            if admitted:
                first = len(self._rows) - len(admitted)
                yield from self._take(
                    first, [[token] for token in self._choose(first, torch.stack(admitted))]
                )
            elif self._rows:
                yield from self._step()
            else:
                return

    def _has_room_for(self, row: _Row) -> bool:
        return len(self._rows) < self._max_rows(self._capacity_with(row))

    def _max_rows(self, capacity: int) -> int:
        """Return how many rows may be under way where each has room for so many tokens."""
        return max(1, min(MAX_ROWS, MAX_BYTES // (capacity * self._forward.bytes_per_token())))

    def _capacity_with(self, row: _Row) -> int:
        """Return for how many tokens there is room where this one is under way, too."""
        tokens = -(-row.most_tokens // CAPACITY_STEP) * CAPACITY_STEP
        return max(self._earlier.capacity, min(tokens, self._forward.context_length))

    # Prompts.

    def _read_prompts(self, requests: Iterator[tuple[int, Request]]) -> Iterator[_ReadPrompt]:
        while some := list(islice(requests, REQUESTS_AT_ONCE)):
            # The longest work first, so that no single row is left at the end.
            some.sort(key=lambda item: (-item[1].max_new_tokens, -len(item[1].prompt_ids)))
            pending = deque(some)
            while pending:
                group = [pending.popleft()]
                longest = len(group[0][1].prompt_ids)
                while pending and len(group) < MAX_ROWS:
                    longest = max(longest, len(pending[0][1].prompt_ids))
                    if longest * (len(group) + 1) > PROMPT_TOKENS_AT_ONCE:
                        break
                    group.append(pending.popleft())
                yield from self._read_group(group)

    def _read_group(self, group: list[tuple[int, Request]]) -> Iterator[_ReadPrompt]:
        logits, earlier = self._read([request.prompt_ids for _, request in group])
        is_alone = len(group) == 1 and group[0][1].sequences == 1
        for source, (number, request) in enumerate(group):
            for sequence in range(request.sequences):
                row = _Row(number, sequence, request, list(request.prompt_ids))
                if is_alone and self._sampling.is_greedy:
                    row.lookup = PromptLookup(row.ids)
                yield _ReadPrompt(row, earlier, source, logits[source])

    def _read(self, prompts: list[list[int]]) -> tuple[Tensor, KeysAndValues]:
        """Return (prompts, vocabulary) logits of the tokens behind, and what the prompts leave."""
        lengths = [len(ids) for ids in prompts]
        earlier = self._forward.new_keys_and_values(len(prompts), max(lengths))
        hidden = self._forward.hidden_states(prompts, [0] * len(prompts), earlier)
        last = torch.tensor(lengths, device=hidden.device).cumsum(0) - 1
        return self._forward.logits(hidden[last]), earlier

    # Rows.

    def _admit(self, prompt: _ReadPrompt) -> None:
        """Let a sequence be under way, but for its first token."""
        rows, capacity = len(self._rows) + 1, self._capacity_with(prompt.row)
        if rows > self._earlier.rows or capacity > self._earlier.capacity:
            self._make_room(rows, capacity)
        tokens = len(prompt.row.ids)
        self._earlier.fill_row(rows - 1, prompt.earlier, prompt.earlier_row, tokens)
        self._rows.append(prompt.row)

    def _make_room(self, rows: int, capacity: int) -> None:
        # Twice as many at a time, as what is there is copied; where each takes more, there may be fewer.
        wished = self._earlier.rows if rows <= self._earlier.rows else 2 * self._earlier.rows
        rows = max(rows, min(wished, self._max_rows(capacity)))
        larger = self._forward.new_keys_and_values(rows, capacity)
        for number, row in enumerate(self._rows):
            larger.fill_row(number, self._earlier, number, row.seen)
        self._earlier = larger

    def _step(self) -> Iterator[NewToken | Finished]:
        lookup = self._rows[0].lookup if len(self._rows) == 1 else None
        draft: list[int] = []
        if lookup is not None:
            row = self._rows[0]
            # The model adds a token of its own: all have to be wanted, and to find room.
            room = min(row.most_tokens, self._earlier.capacity) - len(row.ids) - 1
            draft = lookup.draft(room)
        new_ids = [[row.ids[-1], *draft] for row in self._rows]
        starts = [row.seen for row in self._rows]
        logits = self._forward.logits(self._forward.hidden_states(new_ids, starts, self._earlier))
        if lookup is not None and draft:
            self._check_finite(logits)
            chosen = self._sampling.choose(logits, [])
            # Each is right as long as those before it, which it was made behind, are what was drafted.
            right = 0
            while right < len(draft) and chosen[right] == draft[right]:
                right += 1
            lookup.note(len(draft), right)
            yield from self._take(0, [chosen[: right + 1]])
        else:
            yield from self._take(0, [[token] for token in self._choose(0, logits)])

    def _choose(self, first: int, logits: Tensor) -> list[int]:
        """Return the next token of the rows from `first` on; logits: (rows, vocabulary)."""
        self._check_finite(logits)
        draws = [
            0.0 if self._sampling.is_greedy else uniform(row.request.seed, row.sequence, row.made)
            for row in self._rows[first:]
        ]
        return self._sampling.choose(logits, draws)

    def _check_finite(self, logits: Tensor) -> None:
        if not math.isfinite(logits.amax()):
            raise ModelError(
                "The model's scores are not finite: its weights are damaged, or too large for this "
                "--precision. Try --precision fp32."
            )

    def _take(self, first: int, chosen: list[list[int]]) -> Iterator[NewToken | Finished]:
        """Add what was chosen to the rows from `first` on, and let go of those that have ended."""
        ended = []
        for place, (row, tokens) in enumerate(zip(self._rows[first:], chosen, strict=True), first):
            for token_id in tokens:
                reason = None
                if token_id == self._end_of_text_id:
                    reason = END_OF_TEXT
                else:
                    row.ids.append(token_id)
                    row.made += 1
                    yield NewToken(row.number, row.sequence, token_id)
                    if (row.number, row.sequence) in self._stopped:
                        reason = STOPPED
                    elif row.made == row.request.max_new_tokens:
                        reason = LENGTH
                    elif len(row.ids) == self._forward.context_length and not self._slides:
                        reason = CONTEXT
                if reason is not None:
                    yield Finished(row.number, row.sequence, reason)
                    ended.append(place)
                    break
            else:
                if row.lookup is not None:
                    row.lookup.extend(tokens)
                if len(row.ids) > self._forward.context_length:
                    self._slide(place)
        for place in reversed(ended):
            last = self._rows.pop()
            if place < len(self._rows):
                self._rows[place] = last
                self._earlier.fill_row(place, self._earlier, len(self._rows), last.seen)

    def _slide(self, place: int) -> None:
        """Let a row go on behind the last half of the context, as if its text began there."""
        row = self._rows[place]
        row.ids = row.ids[-kept_of(self._forward.context_length) :]
        if before := row.ids[:-1]:
            self._earlier.fill_row(place, self._read([before])[1], 0, len(before))


def kept_of(context_length: int) -> int:
    """Return how many tokens stay in view of a text that has outgrown the context: the last half."""
    return max(1, context_length // 2)


class TextStream:
    """Turns tokens into text as they come, never splitting a character of several bytes.

    Each new text is decoded behind that of the tokens before it, because some tokenizers decode the
    first token of a text differently (without its space).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids)
        self._shown = len(self._ids)  # Tokens whose text has been returned.
        # A few tokens are context enough, and keep the cost of a token constant.
        self._context = max(0, self._shown - 4)
        self.text = ""

    def add(self, token_id: int) -> str:
        """Return the text that is complete with this token; "" while a character is not."""
        self._ids.append(token_id)
        new = self._new_text()
        # An unfinished character decodes to U+FFFD at the end.
        return "" if new.endswith("\ufffd") else self._show(new)

    def finish(self) -> str:
        """Return what is still held back: bytes that will not become a character any more."""
        return self._show(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _show(self, new: str) -> str:
        self._context, self._shown = self._shown, len(self._ids)
        self.text += new
        return new

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
