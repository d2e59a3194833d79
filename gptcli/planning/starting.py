"""The shape that a training starts from, read from settings and small files, without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptcli.config.schema import NAMED_SIZES, Settings
from gptcli.errors import ConfigError, ModelError
from gptcli.planning.shape import Shape

GPT2_VOCABULARY = 50_257
# As published; for those whose config.json is not here.
_PUBLISHED = {"gpt2": "small", "gpt2-medium": "medium", "gpt2-large": "large", "gpt2-xl": "xl"}
# Labels of a classifier, where only the data says which they are.
_ASSUMED_LABELS = 2


def starting_shape(settings: Settings) -> Shape:
    """Return the shape of the model that `settings` make or name.

    Raises ModelError for a model or tokenizer whose size cannot be seen here.
    """
    model = settings.model
    if model.name is not None:
        return _named_shape(model.name, settings)
    assert model.n_layer and model.n_head and model.n_embd and model.context_length
    return _with_head(
        model.n_layer,
        model.n_head,
        model.n_embd,
        model.context_length,
        vocabulary_size(settings),
        4 * model.n_embd,
        settings,
        labels=None,
    )


def sequence_length(settings: Settings, shape: Shape) -> int:
    """Return the most tokens of a sequence. Raises ConfigError for more than the model has."""
    length = settings.model.context_length or shape.positions
    if length > shape.positions:
        raise ConfigError(
            f"model.context_length is {length}; that of {settings.model.name} is {shape.positions}."
        )
    return length


def vocabulary_size(settings: Settings) -> int:
    """Return the tokens of the tokenizer in the settings; of a new one, those asked for.

    Raises ModelError for one that is not here.
    """
    tokenizer = settings.tokenizer
    if tokenizer.train is not None:
        return tokenizer.train.vocab_size
    name = tokenizer.name
    assert name is not None
    facts = _json_of(name, "tokenizer.json")
    if facts is not None:
        ids = {*facts["model"]["vocab"].values(), *(token["id"] for token in facts["added_tokens"])}
        return int(max(ids)) + 1
    ids = _json_of(name, "vocab.json")
    if ids is not None:
        return int(max(ids.values())) + 1
    if _published_size(name) is not None:
        return GPT2_VOCABULARY
    raise ModelError(
        f"tokenizer.name is {name}, which is no folder here and not in the hub cache, so the size of "
        "its vocabulary is not known. A --dry-run of the training loads it."
    )


def _named_shape(name: str, settings: Settings) -> Shape:
    facts = _json_of(_folder_of(name), "config.json")
    if facts is None:
        size = _published_size(name)
        if size is None:
            raise ModelError(
                f"model.name is {name}, which is no folder here and not in the hub cache, so its size "
                "is not known. A --dry-run of the training loads it."
            )
        layers, heads, width, positions = NAMED_SIZES[size]
        return _with_head(
            layers, heads, width, positions, GPT2_VOCABULARY, 4 * width, settings, labels=None
        )
    try:
        width = int(facts["n_embd"])
        labels = facts.get("id2label") if "Classification" in str(facts.get("architectures")) else None
        return _with_head(
            int(facts["n_layer"]),
            int(facts["n_head"]),
            width,
            int(facts["n_positions"]),
            int(facts["vocab_size"]),
            int(facts.get("n_inner") or 4 * width),
            settings,
            labels=len(labels) if labels else None,
        )
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{name}: its config.json is not that of a GPT-2.") from None


def _with_head(
    layers: int,
    heads: int,
    width: int,
    positions: int,
    vocabulary: int,
    inner: int,
    settings: Settings,
    *,
    labels: int | None,
) -> Shape:
    head = 0
    if settings.task == "classification":
        count = len(settings.data.labels) if settings.data.labels else labels or _ASSUMED_LABELS
        head = width * (1 if settings.training.objective == "regression" else count)
    elif settings.task == "question-answering":
        head = 2 * width + 2
    return Shape(layers, heads, width, positions, vocabulary, inner, head)


def _folder_of(name: str) -> str:
    """Return the model folder of a run or a checkpoint; any other name as it is."""
    path = Path(name).expanduser()
    if (path / "run.json").is_file():
        return str(path / "model")
    if (path / "manifest.json").is_file():
        return str(path.parent.parent / "model")
    return str(path) if path.is_dir() else name


def _published_size(name: str) -> str | None:
    return _PUBLISHED.get(name.removeprefix("openai-community/"))


def _json_of(name: str, file: str) -> Any:
    """Return what a file of a folder, or of a hub name in the hub's cache, says; None without it."""
    folder = Path(name).expanduser()
    path: Any = folder / file
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            path = try_to_load_from_cache(name, file)
        except HFValidationError:  # No name that a hub could have.
            return None
        if not isinstance(path, str):
            return None
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error
    if not isinstance(facts, dict):
        raise ModelError(f"{path} cannot be read: it must hold a JSON object.")
    return facts
