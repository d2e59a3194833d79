"""The model folder: a plain Hugging Face folder that `from_pretrained` reads."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.files import replace_file

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def save_model(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer to `folder`, which holds a whole model before, during and after.

    The files are made beside it and moved in one by one. Between two saves of a run only the weights
    differ, and they are one file.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer.model_max_length = model.config.n_positions
        tokenizer.save_pretrained(staging)
        # One file, however large: several could not be replaced at once.
        model.save_pretrained(staging, max_shard_size="1TB")
        mode = (staging / "config.json").stat().st_mode
        folder.mkdir(exist_ok=True)
        for file in sorted(staging.iterdir()):
            file.chmod(mode)  # safetensors makes files that only their owner can read.
            replace_file(file, folder / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
