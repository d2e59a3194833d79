"""Generation: prompts in, continuations out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gptcli.config.schema import MAX_SEED, GenerationSettings, RuntimeSettings
from gptcli.data.batches import mix
from gptcli.data.input_rows import check_unicode
from gptcli.errors import ConfigError, DataError
from gptcli.generation.decoder import CONTEXT, Decoder, Finished, Request, TextStream, kept_of
from gptcli.generation.prompts import Prompt
from gptcli.generation.sampling import Sampling
from gptcli.models.loading import LoadedModel
from gptcli.models.plain_model import load_for_decoding
from gptcli.training.device import choose_compute

DEFAULT_NEW_TOKENS = 100


@dataclass(frozen=True)
class Continuation:
    """One continuation of one prompt."""

    prompt: str
    completion: str
    sequence: int
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    """"end_of_text", "length" (as many as asked for) or "context" (the model's context is full)."""
    seed: int | None
    """What makes it again with --seed; None for greedy decoding, which needs none."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PromptRun:
    """A prompt as tokens, and how many may follow."""

    prompt: Prompt
    prompt_ids: list[int]
    max_new_tokens: int


OnText = Callable[[int, int, str], None]
"""Called with (number of the prompt, of its sequence, new text)."""


class Generator:
    """A loaded model and the settings to generate with."""

    def __init__(
        self, model_name: str, settings: GenerationSettings, runtime: RuntimeSettings, seed: int | None
    ) -> None:
        """seed: of --seed; without it one is drawn and reported with every continuation.

        Raises ModelError, EnvironmentProblem.
        """
        self.settings = settings
        self.compute = choose_compute(runtime, for_training=False)
        self.loaded: LoadedModel = load_for_decoding(model_name, self.compute.device, self.compute.dtype)
        self._decoder = Decoder.of(self.loaded, self.compute)
        self._sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
        self.seed_was_drawn = seed is None and not self._sampling.is_greedy
        self.seed = random.SystemRandom().randint(0, MAX_SEED) if seed is None else seed

    @property
    def context_length(self) -> int:
        return int(self.loaded.model.config.n_positions)

    def is_full(self, made: Continuation) -> bool:
        """Whether the context was not enough for a continuation."""
        has_slid = made.prompt_tokens + made.completion_tokens > self.context_length
        return made.finish_reason == CONTEXT or has_slid

    def plan(self, prompt: Prompt) -> PromptRun:
        """Return the prompt as tokens with the room it leaves.

        An empty prompt starts from end-of-text. Raises ConfigError (DataError for a line of a file) for
        a prompt that is no text or leaves no room, ModelError for a tokenizer of another model.
        """
        tokenizer = self.loaded.tokenizer
        error = ConfigError if prompt.origin is None else DataError
        where = "The prompt" if prompt.origin is None else f"{prompt.origin}: the prompt"
        check_unicode(prompt.text, error, where)
        prompt_ids = tokenizer.encode(prompt.text, add_special_tokens=False)
        if len(prompt_ids) >= self.context_length and self.settings.context_end != "slide":
            raise error(
                f"{where} has {len(prompt_ids)} tokens; the context of {self.loaded.name} is "
                f"{self.context_length}, the new tokens included. Shorten the prompt, or let its end be "
                "enough: --context-end slide."
            )
        # As in Hugging Face's generate, max_length counts the prompt, but not what we put before it.
        max_length = self.settings.max_length
        if max_length is None:
            max_new_tokens = self.settings.max_new_tokens or DEFAULT_NEW_TOKENS
        elif max_length > len(prompt_ids):
            max_new_tokens = max_length - len(prompt_ids)
        else:
            raise error(
                f"{where} has {len(prompt_ids)} tokens; --max-length {max_length} counts them and "
                "leaves no room for new ones. Raise it, or use --max-new-tokens."
            )
        if (
            self.settings.context_end == "refuse"
            and len(prompt_ids) + max_new_tokens > self.context_length
        ):
            raise error(
                f"{where} has {len(prompt_ids)} tokens and may get {max_new_tokens} new ones; the "
                f"context of {self.loaded.name} is {self.context_length} (--context-end refuse). Lower "
                "--max-new-tokens."
            )
        prompt_ids = prompt_ids or [tokenizer.eos_token_id]
        self.loaded.check_token(max(prompt_ids), "a prompt")
        return PromptRun(prompt, prompt_ids, max_new_tokens)

    def run(
        self,
        planned: Sequence[PromptRun],
        on_text: OnText = lambda number, sequence, text: None,
    ) -> Iterator[list[Continuation]]:
        """Yield the continuations of each prompt, in the order of the prompts.

        They are made together, the longest first, and `on_text` is told as they are.
        """
        texts: dict[tuple[int, int], _Text] = {}
        whole: dict[int, list[Continuation]] = {}
        due = 0
        requests = (self._request(item, number) for number, item in enumerate(planned))
        slides = self.settings.context_end == "slide"
        for event in self._decoder.decode(requests, self._sampling, slides=slides):
            place, item = (event.request, event.sequence), planned[event.request]
            text = texts.get(place)
            if text is None:
                text = texts[place] = _Text(TextStream(self.loaded.tokenizer, item.prompt_ids))
            if isinstance(event, Finished):
                new_text = text.stream.finish()
            else:
                text.tokens += 1
                new_text = text.stream.add(event.token_id)
            if new_text:
                on_text(*place, new_text)
            if isinstance(event, Finished):
                of_prompt = whole.setdefault(event.request, [])
                of_prompt.append(self._continuation(item, texts.pop(place), event))
                while len(whole.get(due, ())) == self.settings.num_return_sequences:
                    yield sorted(whole.pop(due), key=lambda one: one.sequence)
                    due += 1

    def _request(self, item: PromptRun, number: int) -> Request:
        ids = item.prompt_ids
        if len(ids) >= self.context_length:
            ids = ids[-kept_of(self.context_length) :]
        # Prompts draw from seeds of their own: their order does not change their texts.
        seed = mix(self.seed, number)
        return Request(ids, item.max_new_tokens, self.settings.num_return_sequences, seed)

    def _continuation(self, item: PromptRun, text: _Text, end: Finished) -> Continuation:
        return Continuation(
            prompt=item.prompt.text,
            completion=text.stream.text,
            sequence=end.sequence,
            prompt_tokens=len(item.prompt_ids),
            completion_tokens=text.tokens,
            finish_reason=end.reason,
            seed=None if self._sampling.is_greedy else self.seed,
        )


@dataclass
class _Text:
    """A continuation as it is made."""

    stream: TextStream
    tokens: int = 0
