"""The model folder: a plain Hugging Face folder that `from_pretrained` reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import ConfigError
from gptcli.files import flush_to_disk, partial_path, replace_file, writing_to

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def save_model(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write model and tokenizer to `folder`, which holds a whole model before, during and after.

    texts: of other files, by name.
    The files are made beside it. The first time they are moved in as one folder, later one by one:
    between two saves of a run only the weights differ, and they are one file. Raises EnvironmentProblem
    if the disk does not take them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = partial_path(folder)
    shutil.rmtree(staging, ignore_errors=True)  # What a killed process has left.
    with writing_to(folder):
        try:
            staging.mkdir()
            tokenizer.model_max_length = model.config.n_positions
            tokenizer.save_pretrained(staging)
            # One file, however large: several could not be replaced at once.
            model.save_pretrained(staging, max_shard_size="1TB")
            for name, text in (texts or {}).items():
                (staging / name).write_text(text, encoding="utf-8")
            mode = (staging / "config.json").stat().st_mode
            files = sorted(staging.iterdir())
            for file in files:
                file.chmod(mode)  # safetensors makes files that only their owner can read.
                flush_to_disk(file)
            if folder.exists():
                for file in files:
                    replace_file(file, folder / file.name)
            else:
                flush_to_disk(staging)
                staging.rename(folder)
                flush_to_disk(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_new_folder(path: Path) -> None:
    """Raise ConfigError if `path`, of --output, is a file or a folder with something in it."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--output {path} is a file; it takes a folder.")
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"--output {path} is not empty; it is left alone. Choose another.")
