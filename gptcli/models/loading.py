"""Models from a folder, a run folder, or the Hugging Face hub and its cache."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.data.tokenizing import load_tokenizer
from gptcli.errors import ModelError
from gptcli.hub import hub_problem, use_cache_if_unreachable

if TYPE_CHECKING:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # Which of several files holds which weight.
ADAPTER = "adapter_config.json"

# All that a config.json may decide. What else it can hold names code or other models to load (kernels,
# quantizers), changes what the model returns, or makes tables of any size.
_CONFIG_KEYS = (
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
    "activation_function",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "layer_norm_epsilon",
    "initializer_range",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "add_cross_attention",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


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
    from transformers import GPT2LMHeadModel

    config = _read_config(source)
    _check_weights(source, folder, config)
    try:
        model, report = GPT2LMHeadModel.from_pretrained(
            source,
            config=config,
            attn_implementation="sdpa",
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
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{config} cannot be read: {error}.") from error
    if not isinstance(facts, dict):
        raise ModelError(f"{config} is no model configuration: it must hold a JSON object.")
    _check_kind(str(folder), facts)
    if not any((folder / file).is_file() for file in (WEIGHTS, WEIGHTS_INDEX)):
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        but = f" {pickles[0]} is pickle, which can run code and is not read." if pickles else ""
        raise ModelError(f"{folder} has no weights: {WEIGHTS} is missing.{but}")


def _check_kind(source: str, facts: dict[str, Any]) -> None:
    kind = facts.get("model_type")
    if kind != "gpt2":
        raise ModelError(f"{source} is a {kind!s:.60} model; gptcli works with GPT-2 models.")
    if facts.get("auto_map"):
        raise ModelError(
            f"{source}: its config.json names code to run (auto_map); gptcli runs no code of a model."
        )


def _read_config(source: str) -> GPT2Config:
    from transformers import GPT2Config

    try:
        facts, _ = GPT2Config.get_config_dict(source)
        _check_kind(source, facts)
        keys = (*_CONFIG_KEYS, *GPT2Config.attribute_map)
        config = GPT2Config(**{key: facts[key] for key in keys if key in facts})
    except ModelError:
        raise
    except Exception as error:  # `transformers` raises whatever its parsers raise.
        raise hub_problem("model", source, error) from error
    if config.n_head < 1:
        raise ModelError(f"{source}: its config.json says n_head {config.n_head}; it must be 1 or more.")
    return config


def _file_of(source: str, folder: Path | None, name: str) -> Path | None:
    """Return a file of the model, from the hub if it is not in a folder; None if it has no such file."""
    if folder is not None:
        return folder / name if (folder / name).exists() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
    except Exception as error:
        raise hub_problem("model", source, error) from error


def _check_weights(source: str, folder: Path | None, config: GPT2Config) -> None:
    """Refuse what `from_pretrained` would read though it is no safetensors file of this very model.

    It would also make a model of any size that the config says, before it looks at the weights, and
    leave out the layers that the config does not count.
    """
    if _file_of(source, folder, ADAPTER) is not None:
        raise ModelError(f"{source} holds an adapter ({ADAPTER}); gptcli reads whole models.")
    index = _file_of(source, folder, WEIGHTS_INDEX)
    # As `from_pretrained` does: the one file, if it is there, wins.
    whole = _file_of(source, folder, WEIGHTS)
    names = {WEIGHTS} if index is None else _files_in_index(source, index)
    if whole is not None:
        names = {WEIGHTS}
    shapes: dict[str, list[int]] = {}
    for name in sorted(names):
        file = _file_of(source, folder, name)
        if file is None:
            raise ModelError(f"{source} has no whole weights: {name} is missing.")
        shapes |= _shapes_in(source, file)
    _check_shapes(source, shapes, config)


def _files_in_index(source: str, index: Path) -> set[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except Exception as error:  # JSON of any kind.
        raise hub_problem("weight index", source, error) from error
    for name in sorted(map(str, names)):
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise ModelError(
                f"{source}: its weights are in {name:.100}; only safetensors files beside the index are "
                "read."
            )
    return names


def _shapes_in(source: str, file: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as weights:
            names = list(weights.keys())
            return {
                name.removeprefix("transformer."): weights.get_slice(name).get_shape() for name in names
            }
    except Exception as error:
        raise hub_problem("model", source, error) from error


def _check_shapes(source: str, shapes: dict[str, list[int]], config: GPT2Config) -> None:
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"h\.(\d{1,9})\.", name))}
    if numbers and numbers != set(range(config.n_layer)):
        raise ModelError(
            f"{source}: its config.json says n_layer {config.n_layer}, but its weights are of "
            f"{len(numbers)} layers, numbered up to {max(numbers)}."
        )
    inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
    expected = {
        "wte.weight": [config.vocab_size, config.n_embd],
        "wpe.weight": [config.n_positions, config.n_embd],
        "h.0.mlp.c_fc.weight": [config.n_embd, inner],
    }
    for name, shape in expected.items():
        if name not in shapes:
            raise _not_whole(source, "missing", f"transformer.{name}")
        if shapes[name] != shape:
            raise _not_whole(source, "of another shape", f"transformer.{name}")


def _not_whole(source: str, what: str, name: str) -> ModelError:
    return ModelError(f"{source} is no whole model: weights are {what}, {name} for one.")


def _check_report(name: str, report: Any) -> None:
    """Refuse weights that do not fit: `from_pretrained` would go on with random ones."""
    for key, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        # A weight of another shape comes with both shapes.
        items = report.get(key) or ()
        names = sorted(item if isinstance(item, str) else item[0] for item in items)
        if names:
            raise _not_whole(name, what, names[0])
