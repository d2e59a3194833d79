"""A GPT-2 to continue texts with, without importing transformers.

Its models take longer to import than torch, the weights and a first token together. Decoding needs no
more than the weights, by the names that they have there, and some numbers of config.json. What is no
plain GPT-2 in a folder is left to models/loading.py, which also says what is wrong with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from gptcli.data.plain_tokenizer import plain_tokenizer
from gptcli.data.tokenizing import load_tokenizer
from gptcli.hub import quiet_libraries
from gptcli.models.loading import (
    ADAPTER,
    HEADS,
    WEIGHTS,
    LoadedModel,
    find_model_in,
    load_model,
    model_folder,
    read_weights,
)
from gptcli.training.checkpoint import MODEL_FILE

if TYPE_CHECKING:
    import torch

_Weights = dict[str, "torch.Tensor"]

# Of config.json: other names for the same numbers, and what leads to other files.
_UNUSUAL_KEYS = {"auto_map", "configuration_files", "transformers_weights"} | {
    *("hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers")
}


class PlainConfig(BaseModel):
    """What config.json says of a plain GPT-2, with the types that transformers asks for."""

    model_config = ConfigDict(strict=True, frozen=True)

    model_type: Literal["gpt2"]
    vocab_size: PositiveInt
    n_positions: PositiveInt
    n_embd: PositiveInt
    n_layer: PositiveInt
    n_head: PositiveInt
    n_inner: PositiveInt | None = None
    activation_function: Literal["gelu", "gelu_new", "gelu_pytorch_tanh"] = "gelu_new"
    # transformers refuses integers here: there is none between these bounds.
    layer_norm_epsilon: float = Field(1e-5, gt=0, lt=1)
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: Literal[True] = True
    add_cross_attention: Literal[False] = False
    # Not used, but of these types.
    reorder_and_upcast_attn: bool = False
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    initializer_range: float = Field(0.02, gt=0, lt=1)
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def inner_size(self) -> int:
        return self.n_inner or 4 * self.n_embd


def load_for_decoding(
    name: str, device: torch.device, dtype: torch.dtype, *, is_for_chat: bool = False
) -> LoadedModel:
    """Return the GPT-2 that `name` stands for, to be given to a Decoder. Raises as `load_model` does.

    Its model may be the weights alone, named as in GPT2LMHeadModel; its tokenizer, if not for chat, a
    PlainTokenizer, which knows of no chat template.
    """
    folder, checkpoint = model_folder(name)
    weights_file = None if checkpoint is None else checkpoint / MODEL_FILE
    model = None if folder is None else plain_model(folder, device, dtype, weights_file)
    if folder is None or model is None:
        quiet_libraries()
        return load_model(name, device, dtype, found=find_model_in(name, folder, checkpoint))
    tokenizer = None if is_for_chat else plain_tokenizer(folder)
    if tokenizer is None:
        quiet_libraries()
        tokenizer = load_tokenizer(str(folder))
    return LoadedModel(model, tokenizer, str(folder))


def plain_model(
    folder: Path, device: torch.device, dtype: torch.dtype, weights_file: Path | None = None
) -> Any:
    """Return the weights of a model folder as GPT2LMHeadModel has them; None if it is no plain GPT-2.

    weights_file: where they are, if not in the folder. On a CPU they stay in the file, which is mapped
    into memory, in its number format.
    """
    if (folder / ADAPTER).exists():
        return None
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if facts.keys() & _UNUSUAL_KEYS:
            return None
        config = PlainConfig.model_validate(facts)
        weights = read_weights([weights_file or folder / WEIGHTS])
    except Exception:  # As many kinds as there are files that are no model.
        return None
    if not _belong_together(config, weights):
        return None
    if device.type != "cpu":
        weights = {name: weight.to(device, dtype) for name, weight in weights.items()}
    return _arranged(config, weights)


def _belong_together(config: PlainConfig, weights: _Weights) -> bool:
    layers = {name.split(".")[2] for name in weights if name.startswith("transformer.h.")}
    if layers != {str(number) for number in range(min(config.n_layer, len(weights)))}:
        return False
    if config.n_embd % config.n_head or any(name.startswith(HEADS) for name in weights):
        return False
    width, inner = config.n_embd, config.inner_size
    of_layer: dict[str, tuple[int, ...]] = {
        "ln_1": (width,),
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "ln_2": (width,),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, width),
        "wpe.weight": (config.n_positions, width),
    }
    parts = {f"h.{layer}.{part}": shape for layer in layers for part, shape in of_layer.items()}
    for part, shape in {**parts, "ln_f": (width,)}.items():
        shapes |= {f"{part}.weight": shape, f"{part}.bias": shape[-1:]}
    found = {name.removeprefix("transformer."): weight.shape for name, weight in weights.items()}
    return all(found.get(name) == shape for name, shape in shapes.items())


def _arranged(config: PlainConfig, weights: _Weights) -> Any:
    from gptcli.models.activation import fused_activation

    def part(name: str) -> SimpleNamespace:
        whole = f"transformer.{name}"
        return SimpleNamespace(weight=weights[f"{whole}.weight"], bias=weights.get(f"{whole}.bias"))

    def layer_norm(name: str) -> SimpleNamespace:
        size = (config.n_embd,)
        return SimpleNamespace(**vars(part(name)), normalized_shape=size, eps=config.layer_norm_epsilon)

    def block(number: int) -> SimpleNamespace:
        name, size = f"h.{number}", config.n_embd // config.n_head
        scaling = size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scaling /= number + 1
        attention = SimpleNamespace(
            c_attn=part(f"{name}.attn.c_attn"),
            c_proj=part(f"{name}.attn.c_proj"),
            num_heads=config.n_head,
            head_dim=size,
            scaling=scaling,
        )
        mlp = SimpleNamespace(
            c_fc=part(f"{name}.mlp.c_fc"),
            c_proj=part(f"{name}.mlp.c_proj"),
            act=fused_activation(config.activation_function),
        )
        return SimpleNamespace(
            ln_1=layer_norm(f"{name}.ln_1"), attn=attention, ln_2=layer_norm(f"{name}.ln_2"), mlp=mlp
        )

    embedding = part("wte")
    transformer = SimpleNamespace(
        wte=embedding,
        wpe=part("wpe"),
        h=[block(number) for number in range(config.n_layer)],
        ln_f=layer_norm("ln_f"),
    )
    return SimpleNamespace(config=config, transformer=transformer, lm_head=embedding)
