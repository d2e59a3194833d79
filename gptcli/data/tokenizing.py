"""Tokenizers: a new byte-level BPE trained on the training text, or one from the hub or a folder.

Whichever it is, `<|endoftext|>` (or the tokenizer's own end-of-text) is bos, eos and pad. Padding is
always told apart by position, never by this id, so no real end-of-text is masked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptcli.config.schema import TokenizerTraining
from gptcli.data.documents import END_OF_TEXT
from gptcli.data.progress import Notify, PreparationProgress
from gptcli.data.words import WordMemory, cuts_like_gpt2
from gptcli.errors import ModelError
from gptcli.hub import hub_problem, use_cache_if_unreachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    texts: Iterator[str], settings: TokenizerTraining, notify: Notify = lambda progress: None
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE like GPT-2's, trained on the first part of `texts`.

    Any text in any script round-trips exactly. The vocabulary is smaller than asked for when the text
    has too few pairs to merge.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_megabytes(texts, settings.sample_megabytes, notify), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _first_megabytes(texts: Iterator[str], megabytes: int, notify: Notify) -> Iterator[str]:
    notify(PreparationProgress("counting words", 0, None))
    done, next_notice = 0, 1_000_000
    for text in texts:
        yield text
        done += len(text.encode())
        if done >= next_notice:
            notify(PreparationProgress("counting words", done, None))
            next_notice = done + 1_000_000
        if done >= megabytes * 1_000_000:
            break
    # How long that takes is known to none: of a large vocabulary, longer than the counting.
    notify(PreparationProgress("training the tokenizer", 0, None))


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder, or of a model on the hub or in its cache.

    Raises ModelError if there is none or it has no end-of-text token, EnvironmentProblem if the hub
    cannot be reached.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    kind: Any = AutoTokenizer
    options: dict[str, Any] = {"trust_remote_code": False}
    folder = Path(name).expanduser()
    if folder.is_dir():
        name = str(folder)
        files = {file.name for file in folder.iterdir()}
        if "tokenizer.json" not in files and not files >= {"vocab.json", "merges.txt"}:
            raise ModelError(
                f"{name} holds no tokenizer: tokenizer.json (or vocab.json and merges.txt) is missing."
            )
        if not files & {"tokenizer.json", "tokenizer_config.json", "config.json"}:
            # GPT-2's tokenizer as OpenAI published it: two files that do not say what they are.
            kind = GPT2TokenizerFast
    else:
        use_cache_if_unreachable()
    if kind is AutoTokenizer:
        options["config"] = _kind_of_model(name)
    try:
        tokenizer = kind.from_pretrained(name, **options)
    except Exception as error:  # `transformers` raises whatever its parsers raise.
        raise hub_problem("tokenizer", name, error) from error
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: its tokenizer has no fast version (tokenizer.json), which is needed.")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name}: its tokenizer has no end-of-text token (eos_token).")
    tokenizer.bos_token = tokenizer.pad_token = tokenizer.eos_token
    # No limit of its own, which may be no number: the model says what fits.
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    # A saved tokenizer.json may cut or pad; both would lose or invent text.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _kind_of_model(name: str) -> Any:
    """Return a configuration with what a tokenizer's class is chosen by; None if there is none.

    The rest of config.json decides nothing here, but could take any time and memory to read.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    try:
        facts, _ = PreTrainedConfig.get_config_dict(name)
        kind = facts.get("model_type")
        config = AutoConfig.for_model(kind) if kind in CONFIG_MAPPING else PreTrainedConfig()
    except Exception:  # A tokenizer needs none; what else is wrong, loading it says.
        return None
    config.tokenizer_class = facts.get("tokenizer_class")
    config._name_or_path = name
    return config


def encode_batch(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text, in parallel, with no token added."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


class TextEncoder:
    """Makes tokens of texts, and remembers words from one to the next."""

    # Texts that are shorter on average are not worth the array operations.
    MIN_CHARACTERS = 1000

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        backend = tokenizer.backend_tokenizer
        self._memory = WordMemory(backend) if cuts_like_gpt2(backend) else None

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text, with no token added."""
        if self._memory is None or sum(map(len, texts)) < self.MIN_CHARACTERS * len(texts):
            return [np.array(ids, dtype=np.uint32) for ids in encode_batch(self._tokenizer, texts)]
        return self._memory.encode_batch(texts)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a hash of everything that decides how documents become ids."""
    rules = f"{tokenizer.eos_token_id} {tokenizer.backend_tokenizer.to_str()}"
    return hashlib.sha256(rules.encode()).hexdigest()


def tokenizer_summary(tokenizer: Any) -> dict[str, Any]:
    """Return what run.json says of a tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "end_of_text": tokenizer.eos_token,
        "end_of_text_id": tokenizer.eos_token_id,
        "fingerprint": tokenizer_fingerprint(tokenizer),
    }
