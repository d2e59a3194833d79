"""CTranslate2's own format, made by its own converter (https://opennmt.net/CTranslate2/)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptcli.errors import ConfigError, ModelError
from gptcli.hub import first_line

TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
"""What it calls the number formats of weights."""
TAKEN: dict[str, tuple[Any, ...]] = {
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
"""Of settings that a GPT-2 may have otherwise, what its converter takes for granted."""
COPIED = ("tokenizer.json", "tokenizer_config.json", "README.md")


def import_ctranslate2() -> Any:
    """Return the package. Raises ConfigError if it is not installed."""
    try:
        import ctranslate2
        import ctranslate2.converters
    except ImportError:
        raise ConfigError(
            '--format ctranslate2 needs the package ctranslate2: pip install "gptcli[ctranslate2]".'
        ) from None
    return ctranslate2


def convert(source: Path, target: Path, precision: str) -> None:
    """Make a CTranslate2 folder of a Hugging Face folder. Raises ModelError if its converter fails.

    source: a GPT-2 of language; its tokenizer must name an unknown token, which CTranslate2 wants.
    """
    package = import_ctranslate2()
    try:
        package.converters.TransformersConverter(str(source)).convert(
            str(target), quantization=TYPES[precision]
        )
    except OSError:  # Of writing: the disk is full, ...
        raise
    except Exception as error:  # Whatever the converter raises.
        raise ModelError(f"CTranslate2 cannot convert this model: {first_line(error)}") from error
    for name in COPIED:
        shutil.copy(source / name, target / name)


def likeliest_tokens(folder: Path, tokens: Sequence[str]) -> list[int]:
    """Return the id of the token that CTranslate2 finds likeliest behind each one of a text."""
    import numpy as np

    package = import_ctranslate2()
    package.set_log_level(logging.ERROR)  # Not that it computes in float32 here what is stored in less.
    scores = package.Generator(str(folder), device="cpu").forward_batch([list(tokens)])
    found: list[int] = np.array(scores.to(package.DataType.float32))[0].argmax(-1).tolist()
    return found
