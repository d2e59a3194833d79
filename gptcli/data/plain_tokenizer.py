"""GPT-2's tokenizer from its tokenizer.json, without importing transformers, which takes a second.

Only one that transformers' classes would make the same of is read here: GPT-2's rules, and end-of-text
as the only token that stands for itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.data.words import cuts_like_gpt2

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# What tokenizer_config.json may say besides; anything else can change what becomes of a text.
_END_OF_TEXT_KEYS = {"bos_token", "eos_token", "pad_token", "unk_token"}
_HARMLESS_KEYS = {
    *("add_bos_token", "add_eos_token", "backend", "chat_template", "clean_up_tokenization_spaces"),
    *("errors", "is_local", "local_files_only", "model_max_length", "name_or_path", "padding_side"),
    "truncation_side",
}
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "add_prefix_space": (False,),
    "added_tokens_decoder": (),  # Looked at by itself.
    "additional_special_tokens": (None, []),
    "extra_special_tokens": (None, [], {}),
    "split_special_tokens": (False,),
    "tokenizer_class": _CLASSES,
}


class PlainTokenizer:
    """Makes tokens of a text and text of tokens, by the names that transformers has for it."""

    def __init__(self, backend: Tokenizer, eos_token_id: int) -> None:
        self._backend = backend
        self.eos_token_id = eos_token_id

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return text


def plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """Return the tokenizer of a model folder; None if it is none of GPT-2's, or there is none."""
    from tokenizers import Tokenizer

    if (folder / "added_tokens.json").exists():
        return None
    try:
        facts = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        other_names = folder / "special_tokens_map.json"
        if other_names.exists():
            facts = {**facts, **json.loads(other_names.read_text(encoding="utf-8"))}
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        end_of_text = _content(facts["eos_token"]) or ""
        is_plain = _says_nothing_else(facts, end_of_text) and _has_gpt2_rules(backend, end_of_text)
    except Exception:  # Whatever its parser raises, for files of any content.
        return None
    end_of_text_id = backend.token_to_id(end_of_text)
    if not is_plain or end_of_text_id is None:
        return None
    backend.no_truncation()
    backend.no_padding()
    return PlainTokenizer(backend, end_of_text_id)


def _content(token: Any) -> str | None:
    """Return the text of a special token that is written as text, or with what is usual."""
    if isinstance(token, dict):
        flags = [token.get(name, False) for name in ("lstrip", "rstrip", "single_word")]
        token = None if any(flags) else token.get("content")
    return token if isinstance(token, str) else None


def _says_nothing_else(facts: dict[str, Any], end_of_text: str) -> bool:
    for key, value in facts.items():
        if key in _END_OF_TEXT_KEYS:
            if value is not None and _content(value) != end_of_text:
                return False
        elif key == "added_tokens_decoder":
            if [_content(token) for token in value.values()] != [end_of_text]:
                return False
        elif key not in _HARMLESS_KEYS and value not in _DEFAULTS.get(key, ()):
            return False
    return True


def _has_gpt2_rules(backend: Tokenizer, end_of_text: str) -> bool:
    from tokenizers.decoders import ByteLevel
    from tokenizers.models import BPE

    model = backend.model
    ((number, added),) = backend.get_added_tokens_decoder().items()
    return (
        cuts_like_gpt2(backend)
        and isinstance(backend.decoder, ByteLevel)
        and isinstance(model, BPE)
        and (model.unk_token, model.dropout) == (None, None)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and not (model.fuse_unk or model.byte_fallback or model.ignore_merges)
        and added.content == end_of_text
        and model.token_to_id(end_of_text) == number
        and added.special
        and not (added.lstrip or added.rstrip or added.single_word)
    )
