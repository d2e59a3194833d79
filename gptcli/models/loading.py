"""Models from a folder, a run folder, or the Hugging Face hub and its cache."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptcli.data.tokenizing import load_tokenizer
from gptcli.errors import ModelError
from gptcli.hub import hub_problem, use_cache_if_unreachable
from gptcli.training.checkpoint import MANIFEST_FILE, MODEL_FILE, find_problem

if TYPE_CHECKING:
    import torch
    from transformers import GPT2Config, PreTrainedTokenizerFast

    from gptcli.data.labelled_texts import Objective

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"  # Which of several files holds which weight.
ADAPTER = "adapter_config.json"
# What a config.json calls the objectives of a classifier.
PROBLEM_TYPES: dict[Objective, str] = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}

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


# What a model gives for a text, told from the weights that only such a model has.
Kind = Literal["language-modelling", "classification", "question-answering"]
_KINDS: dict[str, Kind] = {
    "score.weight": "classification",
    "qa_outputs.weight": "question-answering",
}
HEADS = ("score.", "qa_outputs.")
"""How the names of the weights begin that tell what a model is for."""
_WHAT_TO_DO: dict[tuple[Kind, Kind], str] = {
    ("language-modelling", "classification"): "is a classifier; use it with `gptcli classify`",
    ("language-modelling", "question-answering"): "finds answers in a text; use `gptcli answer`",
    ("classification", "language-modelling"): "has no classification head; fine-tune it with "
    "`gptcli finetune` and task: classification, or give --labels to choose the likeliest",
    ("classification", "question-answering"): "finds answers in a text; use `gptcli answer`",
    ("question-answering", "language-modelling"): "has no question-answering head; fine-tune it with "
    "`gptcli finetune` and task: question-answering",
    ("question-answering", "classification"): "is a classifier; use it with `gptcli classify`",
}
MAX_LABELS = 100_000
ANSWER_THRESHOLD = "answer_threshold"
"""In config.json: a question is not answered if the score of no answer is more than that of the best one
plus this; without it, every question is answered."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with its tokenizer."""

    model: Any
    """A GPT2LMHeadModel, GPT2ForSequenceClassification or GPT2ForQuestionAnswering, or the weights of
    the first by their names there, from `load_for_decoding`."""
    tokenizer: PreTrainedTokenizerFast
    """Or a PlainTokenizer, from `load_for_decoding`."""
    name: str

    def check_token(self, token: int, what: str) -> None:
        """Raise ModelError if the model does not know a token that its tokenizer makes of `what`."""
        vocab_size = self.model.config.vocab_size
        if token >= vocab_size:
            raise ModelError(
                f"{self.name}: its tokenizer makes token {token} of {what}, but the model knows "
                f"{vocab_size} tokens. They do not belong together."
            )


def model_class(kind: Kind) -> Any:
    """Return the class of transformers for models of this kind."""
    import transformers

    return {
        "language-modelling": transformers.GPT2LMHeadModel,
        "classification": transformers.GPT2ForSequenceClassification,
        "question-answering": transformers.GPT2ForQuestionAnswering,
    }[kind]


def load_model(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    kind: Kind = "language-modelling",
    found: FoundModel | None = None,
) -> LoadedModel:
    """Return the GPT-2 that `name` stands for: a model folder, a run, a checkpoint, or a hub name.

    found: what `name` leads to, if that has been looked for.

    Only safetensors are read and no code of the model's author is run. Raises ModelError if it is no
    whole GPT-2 of this kind, EnvironmentProblem if it is not here and the hub cannot be reached.
    """
    found = found or find_model(name)
    if found.kind != kind:
        raise ModelError(f"{name} {_WHAT_TO_DO[kind, found.kind]}.")
    return load_found(found, device, dtype)


def load_found(found: FoundModel, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Return the model itself, of whatever kind it is. Raises as `load_model` does."""
    model = _load(found, found.kind, dtype, is_new_head=False, is_trained=False)
    return LoadedModel(model.to(device).eval(), found.tokenizer(), found.name)


def load_for_training(
    found: FoundModel, kind: Kind, *, seed: int, dropout: float, labels: list[str] | None = None
) -> tuple[Any, bool]:
    """Return a model of this kind with the weights of `found`, in float32, and whether its head is new.

    labels: those that a classifier is to tell apart. A classifier of the same labels keeps its head;
    the weights of a new one are decided by `seed`. Raises as `load_model` does.
    """
    import torch

    config = found.config
    for part in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, part, dropout)
    is_new_head = kind != "language-modelling" and (
        found.kind != kind or (labels is not None and label_names(config) != labels)
    )
    if labels is not None:
        set_labels(config, labels)
    if config.pad_token_id is None:  # As GPT-2 was published; transformers wants one for batches.
        config.pad_token_id = config.eos_token_id
    model = _load(found, kind, torch.float32, is_new_head=is_new_head, is_trained=True)
    if is_new_head:  # Also where the weights of an old one fitted in: they stand for other labels.
        head = model.score if kind == "classification" else model.qa_outputs
        torch.manual_seed(seed)
        torch.nn.init.normal_(head.weight, std=config.initializer_range)
        if head.bias is not None:
            torch.nn.init.zeros_(head.bias)
    return model, is_new_head


def label_names(config: GPT2Config) -> list[str]:
    """Return the labels of a classifier, in the order of their numbers."""
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def objective_of(config: GPT2Config) -> Objective:
    """Return what a classifier has learnt, as transformers takes a model that does not say it."""
    for objective, name in PROBLEM_TYPES.items():
        if config.problem_type == name:
            return objective
    return "regression" if config.num_labels == 1 else "single-label"


def set_labels(config: GPT2Config, labels: list[str]) -> None:
    """Make `labels` those of the model."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.num_labels = len(labels)


@dataclass(frozen=True)
class FoundModel:
    """A model whose weights are not loaded yet."""

    name: str
    """A folder, or a name on the hub."""
    files: tuple[Path, ...]
    """That hold the weights."""
    weights_name: str
    """What the weights are of: `name`, or a checkpoint beside it."""
    config: GPT2Config
    kind: Kind

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.name)


def find_model(name: str) -> FoundModel:
    """Return where `name` leads and what is there. Raises as `load_model` does."""
    return find_model_in(name, *model_folder(name))


def find_model_in(name: str, folder: Path | None, checkpoint: Path | None) -> FoundModel:
    """Return what is there. folder, checkpoint: from `model_folder`, which reads all of the latter."""
    if folder is None:
        use_cache_if_unreachable()
        source = name
    else:
        _check_folder(folder)
        source = str(folder)
    facts, config = _read_config(source)
    shapes, files = _check_weights(source, folder, config)
    if checkpoint is not None:
        files = (checkpoint / MODEL_FILE,)
    if "score.weight" in shapes:
        count = shapes["score.weight"][0]
        names = facts.get("id2label")
        if not isinstance(names, dict) or len(names) > MAX_LABELS:
            names = {}
        set_labels(config, [str(names.get(str(n), f"LABEL_{n}")) for n in range(count)])
        if facts.get("problem_type") in PROBLEM_TYPES.values():
            config.problem_type = facts["problem_type"]
    threshold = facts.get(ANSWER_THRESHOLD)
    if isinstance(threshold, float) and math.isfinite(threshold):
        setattr(config, ANSWER_THRESHOLD, threshold)
    return FoundModel(source, files, str(checkpoint or source), config, _kind_of(shapes))


def _model_of_checkpoint(checkpoint: Path) -> Path:
    problem = find_problem(checkpoint)
    if problem is not None:
        raise ModelError(f"{checkpoint} is no whole checkpoint: {problem}.")
    folder = checkpoint.parent.parent / "model"
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{checkpoint} has weights alone; what they are the weights of is in {folder}, which is "
            "written at the first evaluation."
        )
    return folder


def _kind_of(shapes: dict[str, list[int]]) -> Kind:
    return next((kind for name, kind in _KINDS.items() if name in shapes), "language-modelling")


def _load(
    found: FoundModel, kind: Kind, dtype: torch.dtype, *, is_new_head: bool, is_trained: bool
) -> Any:
    """Return the model with its weights, in memory of their own if it is trained.

    Otherwise they stay in the file, which is mapped into memory and read where they are used. Nothing is
    drawn at random: a weight that is missing, or of another shape, is refused, but for a new head's.
    """
    import torch
    from torch import nn

    from gptcli.models.activation import fuse_activation

    try:
        weights = read_weights(found.files)
    except Exception as error:
        raise hub_problem("model", found.name, error) from error
    found.config._attn_implementation = "sdpa"
    try:
        with torch.device("meta"):
            model = model_class(kind)(found.config)
    except Exception as error:  # Numbers in a config.json that make no model.
        raise hub_problem("model", found.name, error) from error
    parameters = dict(model.named_parameters())
    heads = HEADS if is_new_head else ()
    found_weights = {}
    for name, parameter in sorted(parameters.items()):
        if is_new_head and name.startswith(heads):
            weight = torch.empty(parameter.shape)
        elif name not in weights:
            raise _not_whole(found.weights_name, "missing", name)
        elif weights[name].shape != parameter.shape:
            raise _not_whole(found.weights_name, "of another shape", name)
        else:
            weight = weights[name]
        found_weights[name] = nn.Parameter(weight.to(dtype, copy=is_trained))
    model.load_state_dict(found_weights, strict=False, assign=True)
    model.tie_weights()
    fuse_activation(model)
    return model


def read_weights(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return the weights by their names in the model, as they are in their files.

    Raises whatever safetensors does.
    """
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights |= load_file(file)
    # A GPT2Model alone, such as that of OpenAI on the hub, names what is in it without the prefix.
    return {
        name if name.startswith(("transformer.", "lm_head.", *HEADS)) else f"transformer.{name}": weight
        for name, weight in weights.items()
    }


def model_folder(name: str) -> tuple[Path | None, Path | None]:
    """Return the folder of the model that `name` is, and the checkpoint if its weights are there.

    For a run and its checkpoints it is the folder of the run's model; None for a hub name. Raises
    ModelError, also for a checkpoint that is not whole.
    """
    folder = _named_folder(name)
    if folder is not None and (folder / MANIFEST_FILE).is_file():
        return _model_of_checkpoint(folder), folder
    return folder, None


def _named_folder(name: str) -> Path | None:
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


def _read_config(source: str) -> tuple[dict[str, Any], GPT2Config]:
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
    return facts, config


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


def _check_weights(
    source: str, folder: Path | None, config: GPT2Config
) -> tuple[dict[str, list[int]], tuple[Path, ...]]:
    """Return the shapes of the weights by name, and their files.

    Raises ModelError for what is no safetensors file, and for weights that are not of the model that
    the config says: of another size, which may be any, or of more layers than it counts.
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
    files = []
    for name in sorted(names):
        file = _file_of(source, folder, name)
        if file is None:
            raise ModelError(f"{source} has no whole weights: {name} is missing.")
        shapes |= _shapes_in(source, file)
        files.append(file)
    _check_shapes(source, shapes, config)
    return shapes, tuple(files)


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
    # Not as a set of all that are said to be there: a config.json can name any number.
    if numbers and (len(numbers) != config.n_layer or max(numbers) != config.n_layer - 1):
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
