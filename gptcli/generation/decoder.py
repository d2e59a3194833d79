"""The decoding loop: one prompt, one or several continuations, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache, GPT2LMHeadModel

from gptcli.errors import ModelError
from gptcli.generation.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, LENGTH, CONTEXT = "end_of_text", "length", "context"


@dataclass(frozen=True)
class NewToken:
    """A token of one continuation."""

    sequence: int
    token_id: int


@dataclass(frozen=True)
class Finished:
    """A continuation has ended: "end_of_text", "length" (as many as asked for) or "context" (full)."""

    sequence: int
    reason: str


@torch.inference_mode()
def continue_prompt(
    model: GPT2LMHeadModel,
    prompt_ids: list[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    sequences: int,
    end_of_text_id: int,
    seed: int,
) -> Iterator[NewToken | Finished]:
    """Yield the tokens of `sequences` continuations of one prompt as they are made.

    The end-of-text token ends a continuation and is not yielded. The prompt must be shorter than the
    model's context; a continuation that fills the context ends there. Raises ModelError for a model
    whose scores are not finite.
    """
    room = model.config.n_positions - len(prompt_ids)
    assert prompt_ids and room > 0
    steps = min(max_new_tokens, room)
    generator = torch.Generator().manual_seed(seed)
    cache = DynamicCache(config=model.config)
    device = model.device
    # The prompt is read once; its keys and values then serve every continuation.
    inputs = torch.tensor([prompt_ids], device=device)
    logits = model(input_ids=inputs, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    if sequences > 1:
        cache.batch_repeat_interleave(sequences)
        logits = logits.expand(sequences, -1)
    alive = list(range(sequences))  # The sequence of each row of the batch.
    for step in range(1, steps + 1):
        if not logits.amax().isfinite():
            raise ModelError(
                "The model's scores are not finite: its weights are damaged, or too large for this "
                "--precision. Try --precision fp32."
            )
        chosen = sampling.choose(logits, generator)
        kept_rows = []
        for row, token_id in enumerate(chosen.tolist()):
            if token_id == end_of_text_id:
                yield Finished(alive[row], END_OF_TEXT)
            else:
                yield NewToken(alive[row], token_id)
                kept_rows.append(row)
        if step == steps:
            reason = LENGTH if steps == max_new_tokens else CONTEXT
            for row in kept_rows:
                yield Finished(alive[row], reason)
            return
        if len(kept_rows) < len(alive):
            if not kept_rows:
                return
            index = torch.tensor(kept_rows, device=device)
            cache.batch_select_indices(index)
            chosen = chosen[index]
            alive = [alive[row] for row in kept_rows]
        logits = model(input_ids=chosen[:, None], past_key_values=cache).logits[:, -1]


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
