"""Models from a folder, a run folder, or the Hugging Face hub and its cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.data.tokenizing import load_tokenizer
from gptcli.errors import ModelError
from gptcli.hub import hub_problem, use_cache_if_unreachable

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # Which of several files holds which weight.


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with its tokenizer."""

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    name: str


def load_model(name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Return the GPT-2 that `name` stands for: a model folder, a run folder, or a hub name.

    Only safetensors are read and no code of the model's author is run. Raises ModelError if it is no
    whole GPT-2, EnvironmentProblem if it is not here and the hub cannot be reached.
    """
    folder = _model_folder(name)
    source = name if folder is None else str(folder)
    if folder is not None:
        _check_folder(folder)
    else:
        use_cache_if_unreachable()
    from transformers import AutoConfig, GPT2LMHeadModel

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # `transformers` raises whatever its parsers raise.
        raise hub_problem("model", source, error) from error
    if config.model_type != "gpt2":
        raise ModelError(f"{source} is a {config.model_type} model; gptcli works with GPT-2 models.")
    _check_index(source, folder)
    try:
        model, report = GPT2LMHeadModel.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # Said by _check_report, in one line.
            output_loading_info=True,
        )
    except Exception as error:
        raise hub_problem("model", source, error) from error
    _check_report(source, report)
    return LoadedModel(model.to(device).eval(), load_tokenizer(source), source)


def _model_folder(name: str) -> Path | None:
    """Return the folder that `name` is, the model of a run folder that it is, or None for a hub name."""
    if not name.strip():
        raise ModelError("--model is empty; it takes a folder or a hub name such as gpt2.")
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~name of a user who does not exist; refused below.
        path = Path(name)
    if (path / "run.json").is_file():
        if not (path / "model" / "config.json").is_file():
            raise ModelError(f"{name} is a run that has no model yet; it is written when it ends.")
        return path / "model"
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name} is a file; --model takes a model folder, a run folder or a hub name.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise ModelError(f"{name}: no such folder. --model takes a folder or a hub name such as gpt2.")
    return None


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{folder} is no model folder: config.json is missing.")
    try:
        facts: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{config} cannot be read: {error}.") from error
    if not isinstance(facts, dict):
        raise ModelError(f"{config} is no model configuration: it must hold a JSON object.")
    kind = facts.get("model_type")
    if kind != "gpt2":
        raise ModelError(f"{folder} is a {kind} model; gptcli works with GPT-2 models.")
    if facts.get("auto_map"):
        raise ModelError(f"{config} names code to run (auto_map); gptcli runs no code of a model.")
    if not any((folder / file).is_file() for file in (WEIGHTS, WEIGHTS_INDEX)):
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        but = f" {pickles[0]} is pickle, which can run code and is not read." if pickles else ""
        raise ModelError(f"{folder} has no weights: {WEIGHTS} is missing.{but}")


def _check_index(source: str, folder: Path | None) -> None:
    """Refuse an index that names pickle files: `from_pretrained` would read them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        index = folder / WEIGHTS_INDEX if folder else Path(hf_hub_download(source, WEIGHTS_INDEX))
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (FileNotFoundError, EntryNotFoundError, LocalEntryNotFoundError):
        return  # All weights are in one file.
    except Exception as error:
        raise hub_problem("weight index", source, error) from error
    for file in sorted(map(str, files)):
        if not file.endswith(".safetensors"):
            raise ModelError(f"{source}: its weights are in {file}; only safetensors files are read.")


def _check_report(name: str, report: Any) -> None:
    """Refuse weights that do not fit: `from_pretrained` would go on with random ones."""
    for key, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        # A weight of another shape comes with both shapes.
        items = report.get(key) or ()
        names = sorted(item if isinstance(item, str) else item[0] for item in items)
        if names:
            raise ModelError(f"{name} is no whole model: weights are {what}, {names[0]} for one.")
