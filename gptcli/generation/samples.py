"""Samples: how a model that is being trained goes on with the same prompts, now and later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gptcli.config.schema import Settings
from gptcli.data.batches import mix
from gptcli.data.input_rows import check_unicode
from gptcli.errors import ConfigError
from gptcli.generation.decoder import Decoder, NewToken, Request, TextStream
from gptcli.generation.sampling import Sampling
from gptcli.training.job import Sample

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

SAMPLE_TOKENS = 50
"""Most new tokens of a sample, if generation says nothing of length."""
_SETTING = "evaluation.sample_prompts"


class SampleWriter:
    """Continues the prompts of evaluation.sample_prompts as the generation section says.

    A sample depends on the weights, the settings and runtime.seed alone: it draws from a generator of
    its own, the same at each evaluation, and leaves torch's alone.
    """

    def __init__(
        self,
        settings: Settings,
        tokenizer: PreTrainedTokenizerFast,
        context_length: int,
        ids_of: Callable[[str], list[int]],
    ) -> None:
        """context_length: of the model. ids_of: returns the tokens that a prompt becomes, at least one.

        Raises ConfigError for a prompt that is no text, or leaves no room.
        """
        generation = settings.generation
        self._tokenizer = tokenizer
        self._seed = settings.runtime.seed
        self._sampling = Sampling(generation.temperature, generation.top_k, generation.top_p)
        self._planned: list[tuple[str, list[int], int]] = []
        for prompt in settings.evaluation.sample_prompts:
            check_unicode(prompt, ConfigError, f"{_SETTING}: {prompt!r}")
            ids = ids_of(prompt)
            new_tokens = generation.max_new_tokens or SAMPLE_TOKENS
            limit, name = context_length, "the model's context"
            if generation.max_length is not None:
                new_tokens = generation.max_length - len(ids)
                if generation.max_length < context_length:
                    limit, name = generation.max_length, "generation.max_length"
            if len(ids) >= limit:
                raise ConfigError(
                    f"{_SETTING}: {prompt[:60]!r} has {len(ids)} tokens; {name} is {limit}, the new "
                    "tokens included. Shorten the prompt."
                )
            self._planned.append((prompt, ids, new_tokens))

    def write(
        self,
        model: Any,
        dtype: torch.dtype,
        between_samples: Callable[[], None] = lambda: None,
    ) -> list[Sample]:
        """Return a sample a prompt. Calls `between_samples` before each, and lets what it raises pass.

        model: a GPT2LMHeadModel without adapters. dtype: of what is computed.
        Raises ModelError for a model whose scores are not finite.
        """
        decoder = Decoder(model, self._tokenizer.eos_token_id, dtype)
        samples = []
        for number, (prompt, ids, new_tokens) in enumerate(self._planned):
            between_samples()
            stream = TextStream(self._tokenizer, ids)
            request = Request(ids, new_tokens, seed=mix(self._seed, number))
            for event in decoder.decode([request], self._sampling):
                if isinstance(event, NewToken):
                    stream.add(event.token_id)
            stream.finish()
            samples.append(Sample(prompt, stream.text))
        return samples
