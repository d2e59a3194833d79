"""Generation: prompts in, continuations out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gptcli.config.schema import MAX_SEED, GenerationSettings, RuntimeSettings
from gptcli.data.batches import mix
from gptcli.data.input_rows import check_unicode
from gptcli.errors import ConfigError, DataError
from gptcli.generation.decoder import Finished, TextStream, continue_prompt
from gptcli.generation.prompts import Prompt
from gptcli.generation.sampling import Sampling
from gptcli.models.loading import LoadedModel, load_model
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
    """The continuations of one prompt, as they are made."""

    prompt: Prompt
    prompt_ids: list[int]
    max_new_tokens: int


OnText = Callable[[int, str], None]
"""Called with (number of the sequence, new text)."""


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
        self.loaded: LoadedModel = load_model(model_name, self.compute.device, self.compute.dtype)
        self._sampling = Sampling(settings.temperature, settings.top_k, settings.top_p)
        self.seed_was_drawn = seed is None and not self._sampling.is_greedy
        self.seed = random.SystemRandom().randint(0, MAX_SEED) if seed is None else seed

    @property
    def context_length(self) -> int:
        return int(self.loaded.model.config.n_positions)

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
        if len(prompt_ids) >= self.context_length:
            raise error(
                f"{where} has {len(prompt_ids)} tokens; the context of {self.loaded.name} is "
                f"{self.context_length}, the new tokens included. Shorten the prompt."
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
        prompt_ids = prompt_ids or [tokenizer.eos_token_id]
        self.loaded.check_token(max(prompt_ids), "a prompt")
        return PromptRun(prompt, prompt_ids, max_new_tokens)

    def run(
        self, planned: PromptRun, number: int, on_text: OnText = lambda sequence, text: None
    ) -> list[Continuation]:
        """Return the continuations of the `number`-th prompt (from 0)."""
        tokenizer, count = self.loaded.tokenizer, self.settings.num_return_sequences
        streams = [TextStream(tokenizer, planned.prompt_ids) for _ in range(count)]
        lengths = [0] * count
        reasons = [""] * count
        for event in continue_prompt(
            self.loaded.model,
            planned.prompt_ids,
            max_new_tokens=planned.max_new_tokens,
            sampling=self._sampling,
            sequences=count,
            end_of_text_id=tokenizer.eos_token_id,
            # Prompts draw from generators of their own: their order does not change their texts.
            seed=mix(self.seed, number),
        ):
            stream = streams[event.sequence]
            if isinstance(event, Finished):
                reasons[event.sequence] = event.reason
                new_text = stream.finish()
            else:
                lengths[event.sequence] += 1
                new_text = stream.add(event.token_id)
            if new_text:
                on_text(event.sequence, new_text)
        return [
            Continuation(
                prompt=planned.prompt.text,
                completion=streams[sequence].text,
                sequence=sequence,
                prompt_tokens=len(planned.prompt_ids),
                completion_tokens=lengths[sequence],
                finish_reason=reasons[sequence],
                seed=None if self._sampling.is_greedy else self.seed,
            )
            for sequence in range(count)
        ]
