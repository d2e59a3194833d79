"""Chat: a message in, the model's reply out, with all that was said before in view."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.config.schema import MAX_SEED, GenerationSettings, RuntimeSettings
from gptcli.data.batches import mix
from gptcli.data.input_rows import check_unicode
from gptcli.errors import ConfigError, DataError
from gptcli.files import write_text, writing_to
from gptcli.generation.conversation import ChatFormat, Conversation, ReplyStream
from gptcli.generation.decoder import END_OF_TEXT, Decoder, Finished, Request, TextStream
from gptcli.generation.sampling import Sampling
from gptcli.models.loading import LoadedModel
from gptcli.models.plain_model import load_for_decoding
from gptcli.training.device import choose_compute

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9
DEFAULT_NEW_TOKENS = 200

NEXT_TURN, INTERRUPTED = "next_turn", "interrupted"


@dataclass(frozen=True)
class Reply:
    """A message and the model's reply to it."""

    user: str
    assistant: str
    finish_reason: str
    """"end_of_text", "length" (as many tokens as asked for), "next_turn" (the model went on with the
    next heading, which is cut off) or "interrupted"."""
    dropped_messages: int
    """Messages, the oldest, that the model does not see any more from this reply on."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Chat:
    """A loaded model and a conversation with it."""

    def __init__(
        self,
        model_name: str,
        settings: GenerationSettings,
        runtime: RuntimeSettings,
        *,
        seed: int | None = None,
        system: str | None = None,
    ) -> None:
        """seed: without one, one is drawn. max_length and num_return_sequences have no meaning here.

        Raises ModelError, EnvironmentProblem; ConfigError if the context leaves no room to talk.
        """
        if system is not None:
            check_unicode(system, ConfigError, "--system")
        self.compute = choose_compute(runtime, for_training=False)
        self.loaded: LoadedModel = load_for_decoding(
            model_name, self.compute.device, self.compute.dtype, is_for_chat=True
        )
        self._decoder = Decoder.of(self.loaded, self.compute)
        self._sampling = Sampling(
            settings.temperature or DEFAULT_TEMPERATURE,
            settings.top_k,
            settings.top_p or DEFAULT_TOP_P,
        )
        self.seed_was_drawn = seed is None
        self.seed = random.SystemRandom().randint(0, MAX_SEED) if seed is None else seed
        self._replies = 0
        default_new_tokens = max(1, min(DEFAULT_NEW_TOKENS, self.context_length // 2))
        self.max_new_tokens = settings.max_new_tokens or default_new_tokens
        self.conversation = Conversation(system)
        self._format = ChatFormat(self.loaded.tokenizer, self.loaded.name)
        self._check_room()

    @property
    def context_length(self) -> int:
        return int(self.loaded.model.config.n_positions)

    @property
    def is_tuned(self) -> bool:
        """Whether the model says, by its chat template, that it was tuned for conversation."""
        return self._format.is_own

    def reply(
        self,
        text: str,
        on_text: Callable[[str], None] = lambda text: None,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
        where: str = "The message",
    ) -> Reply:
        """Return the reply to `text`, which is passed to `on_text` as it is made.

        is_stopped: asked before each token whether to end the reply here. What the model has said by
        then belongs to the conversation; if it is nothing, the message does not either.
        Raises DataError, naming `where`, for a message that is no text or does not fit; ModelError.
        """
        check_unicode(text, DataError, where)
        prompt = self.conversation.prompt(
            text,
            self._format,
            context_length=self.context_length,
            max_new_tokens=self.max_new_tokens,
            where=where,
        )
        self.loaded.check_token(max(prompt.ids), "a message")
        decoded = TextStream(self.loaded.tokenizer, prompt.ids)
        shown = ReplyStream(self._format.stops)
        reason = INTERRUPTED
        # Each reply draws from a seed of its own, also when the same is asked again.
        seed = mix(self.seed, self._replies)
        request = Request(prompt.ids, self.max_new_tokens, seed=seed)
        for event in self._decoder.decode([request], self._sampling):
            if is_stopped():
                break
            if isinstance(event, Finished):
                reason = event.reason
                new_text = decoded.finish()
            else:
                new_text = decoded.add(event.token_id)
            new_text = shown.add(new_text)
            if new_text:
                on_text(new_text)
            if shown.is_stopped:
                reason = NEXT_TURN
                break
        rest = shown.finish(is_whole=reason == END_OF_TEXT)
        if rest:
            on_text(rest)
        self._replies += 1
        if shown.text or reason != INTERRUPTED:
            self.conversation.add(text, shown.text)
        return Reply(text, shown.text, reason, prompt.dropped_messages)

    def save(self, file: Path) -> None:
        """Write the conversation as one JSON line, {"messages": [...]}, to a new file.

        Raises ConfigError if there is nothing to save or the file exists, EnvironmentProblem.
        """
        if self.conversation.is_empty:
            raise ConfigError("Nothing has been said yet.")
        row = {"messages": self.conversation.messages}
        with writing_to(file):
            if file.exists() or file.is_symlink():
                raise ConfigError(f"{file} exists and is not overwritten. Choose another name.")
            write_text(file, json.dumps(row, ensure_ascii=False) + "\n")

    def _check_room(self) -> None:
        """Say before anybody types that a template fails, or that no message would fit."""
        shortest = [*self.conversation.messages, {"role": "user", "content": "Hi"}]
        ids = self._format.token_ids(shortest, asks_for_reply=True)
        self.loaded.check_token(max(ids), "a message")
        if len(ids) + self.max_new_tokens > self.context_length:
            beside = " with --system" if len(shortest) > 1 else ""
            raise ConfigError(
                f"The context of {self.loaded.name} is {self.context_length} tokens: too few for the "
                f"shortest message{beside} ({len(ids)}) and a reply (--max-new-tokens "
                f"{self.max_new_tokens})."
            )
