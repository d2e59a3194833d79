"""Tokens as people read them. Those of a byte-level BPE are bytes, often a part of a character only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPACE = "·"


@dataclass(frozen=True)
class TokenName:
    """A token, and what it is called."""

    id: int
    token: str
    """As the vocabulary has it: "Ġcat" for " cat"."""
    text: str
    """What it stands for; bytes that are no whole character as \\xe4."""

    @property
    def visible(self) -> str:
        """The text with spaces as middle dots, and all else that is unseen written out: \\n, \\u202e."""
        return "".join(_visible(character) for character in self.text)


def token_names(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[TokenName]:
    """Return what the tokens are called; one that the vocabulary lacks is called by its number."""
    from tokenizers.decoders import ByteLevel

    is_byte_level = isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel)
    added = tokenizer.added_tokens_decoder  # <|endoftext|> and others that stand for themselves.
    names = []
    for number in ids:
        token = tokenizer.convert_ids_to_tokens(number)
        if token is None:
            token = f"<{number}>"
        text = _decoded(token) if is_byte_level and number not in added else token
        names.append(TokenName(number, token, text))
    return names


def _decoded(token: str) -> str:
    bytes_of = _bytes_by_character()
    if not bytes_of.keys() >= set(token):
        return token
    return bytes(bytes_of[character] for character in token).decode("utf-8", "backslashreplace")


@cache
def _bytes_by_character() -> dict[str, int]:
    """Return which byte each character of a byte-level vocabulary stands for.

    GPT-2's table: printable bytes of Latin-1 stand for themselves, the others, in their order, for the
    characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def _visible(character: str) -> str:
    if character == " ":
        return SPACE
    # Control characters, line ends, marks that turn the direction of writing, other spaces.
    if character.isprintable():
        return character
    if "\x80" <= character <= "\xff":  # \xa0 would read as a byte.
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode("ascii")
