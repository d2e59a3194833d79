"""A conversation, and how it becomes the prompt that a model continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.errors import DataError, ModelError
from gptcli.hub import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]
"""{"role": "system", "user" or "assistant", "content": text}"""

# How a conversation is written for a model that brings no way of its own, and saved with the models that
# are tuned here. A prompt for a reply is how the conversation with that reply begins, in text and in
# tokens: each message is written alike wherever it stands, each reply begins with no whitespace (which
# could merge with the line feed before it) and ends with end-of-text.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ '### System:\\n' + (message['content'] | trim) + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '### Instruction:\\n' + (message['content'] | trim) + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + (message['content'] | trim) + eos_token }}"
    "{% else %}"
    "{{ raise_exception('The role of a message is system, user or assistant.') }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
HEADINGS = ("### System:", "### Instruction:", "### Response:")
_HEADING_MARK = "###"


class ChatFormat:
    """How one model's conversations are written: by its own chat template, else by the default one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
        """name: what errors call the model."""
        self._tokenizer = tokenizer
        self._name = name
        self.is_own = bool(tokenizer.chat_template)
        """Whether the model brings a template, which says that it was tuned for conversation."""
        is_default = not self.is_own or tokenizer.chat_template == DEFAULT_CHAT_TEMPLATE
        # What the model may write when it goes on with the next message itself.
        self.stops = HEADINGS if is_default else ()

    def text(self, messages: Sequence[Message], *, asks_for_reply: bool) -> str:
        """Return the messages as one text, up to where a reply begins if it `asks_for_reply`.

        Raises ModelError for a template that fails; templates are run in a sandbox.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=None if self.is_own else DEFAULT_CHAT_TEMPLATE,
                    add_generation_prompt=asks_for_reply,
                    tokenize=False,
                )
            )
        except Exception as error:  # What a template raises, and what it makes its interpreter raise.
            raise self._problem(error) from error

    def token_ids(self, messages: Sequence[Message], *, asks_for_reply: bool) -> list[int]:
        """Return the same as tokens, at least one. Raises ModelError."""
        text = self.text(messages, asks_for_reply=asks_for_reply)
        try:
            ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:  # A template can make text that is not valid Unicode.
            raise self._problem(error) from error
        if not ids:
            raise ModelError(f"{self._name}: its chat template writes nothing.")
        return ids

    def _problem(self, error: Exception) -> ModelError:
        return ModelError(f"{self._name}: its chat template cannot be used: {first_line(error)}")


@dataclass(frozen=True)
class ChatPrompt:
    """The tokens for the model to continue, and the messages that had to go to make room for them."""

    ids: list[int]
    dropped_messages: int


class Conversation:
    """What was said, and how much of it the model still sees.

    A user's message and its reply come and go together: templates count on roles that alternate.
    """

    def __init__(self, system: str | None = None) -> None:
        self._system: list[Message] = []
        if system is not None:
            self._system.append({"role": "system", "content": system})
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self._said: list[Message] = []
        self._dropped = 0

    @property
    def messages(self) -> list[Message]:
        """All messages, also those that the model no longer sees."""
        return [*self._system, *self._said]

    @property
    def is_empty(self) -> bool:
        return not self._said

    def add(self, user: str, assistant: str) -> None:
        """Add a message and its reply."""
        self._said += [
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ]

    def prompt(
        self,
        user: str,
        chat_format: ChatFormat,
        *,
        context_length: int,
        max_new_tokens: int,
        where: str = "The message",
    ) -> ChatPrompt:
        """Return the prompt for a reply to `user`; the context has room for it and `max_new_tokens`.

        The oldest exchanges are dropped for that, and stay dropped. Raises DataError, naming `where`, if
        the message does not fit even alone (with the system message, which is kept).
        """
        asked = {"role": "user", "content": user}
        for dropped in range(self._dropped, len(self._said) + 1, 2):
            messages = [*self._system, *self._said[dropped:], asked]
            ids = chat_format.token_ids(messages, asks_for_reply=True)
            if len(ids) + max_new_tokens <= context_length:
                newly_dropped = dropped - self._dropped
                self._dropped = dropped
                return ChatPrompt(ids, newly_dropped)
        beside = "the system message and what" if self._system else "what"
        raise DataError(
            f"{where} has {len(ids)} tokens, with {beside} the chat template adds; the context is "
            f"{context_length}, {max_new_tokens} of them for the reply. Shorten it, or lower "
            "--max-new-tokens."
        )


class ReplyStream:
    """Passes a reply on as it comes, without whitespace around it, up to the first stop text.

    What may still turn out to be a stop text, or whitespace at the end, is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.text = ""
        """What has been passed on."""
        self.is_stopped = False

    def add(self, text: str) -> str:
        """Return what can be shown now; nothing comes after a stop text."""
        assert not self.is_stopped
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            return self._pass_on(min(places))
        return self._pass_on(len(self._held) - self._length_of_half_a_stop())

    def finish(self, *, is_whole: bool) -> str:
        """Return what is left to be shown; of a reply that is not whole, no half of a heading."""
        half = self._length_of_half_a_stop()
        is_heading = not is_whole and self._held[len(self._held) - half :].startswith(_HEADING_MARK)
        return "" if self.is_stopped else self._pass_on(len(self._held) - (half if is_heading else 0))

    def _length_of_half_a_stop(self) -> int:
        """Return how many characters at the end may be the beginning of a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if self._begins_a_stop(self._held[-n:])), 0)

    def _begins_a_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)

    def _pass_on(self, end: int) -> str:
        shown = self._held[:end].rstrip()
        self._held = self._held[len(shown) :]
        if not self.text:
            shown = shown.lstrip()
        self.text += shown
        return shown
