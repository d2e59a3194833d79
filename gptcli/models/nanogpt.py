"""A checkpoint of nanoGPT (https://github.com/karpathy/nanoGPT), `ckpt.pt`, as a GPT-2 of transformers.

A `.pt` file is pickle, which elsewhere gptcli never reads. torch's reader for weights alone
(`weights_only=True`) makes tensors, numbers, texts, lists and dictionaries of it, and refuses all else;
this module is the only one that calls it, and a test keeps it so.

What differs from GPT-2 as transformers has it:

1. Names begin with `_orig_mod.` if the model was compiled.
2. Matrices are (outputs, inputs), those of transformers' GPT-2 (inputs, outputs).
3. Biases may be left out (`bias=False`): zeros do the same.
4. The vocabulary is padded, to 50,304 for GPT-2's 50,257 tokens; what stands for no token is cut off.
5. The activation is the exact GELU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from gptcli.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COMPILED = "_orig_mod."
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASK = ".attn.bias"
"""How the name of a buffer ends that holds no weights: which tokens are later."""
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


def read_nanogpt(path: Path, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """Return the model of a checkpoint, for this tokenizer, in float32.

    Raises ModelError for what is no whole checkpoint of nanoGPT, or one of another tokenizer.
    """
    sizes, weights = _read(path)
    tokens = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    if sizes["vocab_size"] < tokens:
        raise ModelError(
            f"{path} knows {sizes['vocab_size']:,} tokens and the tokenizer has {tokens:,}: they do not "
            "belong together."
        )
    config = GPT2Config(
        vocab_size=tokens,
        n_positions=sizes["block_size"],
        n_embd=sizes["n_embd"],
        n_layer=sizes["n_layer"],
        n_head=sizes["n_head"],
        activation_function="gelu",
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    with torch.device("meta"):  # The sizes are checked before memory is taken for them.
        shapes = {name: weight.shape for name, weight in GPT2LMHeadModel(config).named_parameters()}
    state = {}
    for name, shape in shapes.items():
        weight = weights.pop(name, None)
        if weight is None and name.endswith(".bias"):
            state[name] = torch.zeros(shape)
            continue
        if weight is None:
            raise ModelError(f"{path} is no whole checkpoint of nanoGPT: {name} is missing.")
        if name.endswith(TRANSPOSED):
            weight = weight.t()
        elif name == "transformer.wte.weight":
            weight = weight[:tokens]
        if weight.shape != shape:
            raise ModelError(
                f"{path} is no whole checkpoint of nanoGPT: {name} is {_shown(weight.shape)}, and its "
                f"model_args say {_shown(shape)}."
            )
        state[name] = weight.float().contiguous()
    weights.pop("lm_head.weight", None)  # The same as wte.
    if weights:
        raise ModelError(f"{path} holds {min(weights)}, which a GPT-2 has not.")
    model = GPT2LMHeadModel(config)
    model.load_state_dict(state, strict=False)  # lm_head is tied to wte.
    return model.eval()


def _read(path: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return the sizes of a checkpoint's model, and its weights without prefixes and masks."""
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # pickle's own, zipfile's, ...: the file can hold anything.
        # Not torch's own words, which say how to run the code in it.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        example = f" ({code[1]})" if code else ""
        raise ModelError(
            f"{path} is not read: it holds more than weights{example}, or is damaged."
        ) from error
    sizes = found.get("model_args") if isinstance(found, dict) else None
    weights = found.get("model") if isinstance(found, dict) else None
    if not isinstance(sizes, dict) or not isinstance(weights, dict):
        raise ModelError(f"{path} is no checkpoint of nanoGPT: it has no model_args and model.")
    for name in SIZES:
        if type(sizes.get(name)) is not int or sizes[name] < 1:
            given = f"{sizes.get(name)!r:.40}"
            raise ModelError(f"{path}: its model_args say {name} {given}; it must be 1 or more.")
    width, heads, layer_count = sizes["n_embd"], sizes["n_head"], sizes["n_layer"]
    if width % heads:
        raise ModelError(
            f"{path}: its model_args say n_embd {width}, which n_head {heads} does not divide."
        )
    named = {str(name).removeprefix(COMPILED): weight for name, weight in weights.items()}
    named = {name: weight for name, weight in named.items() if not name.endswith(MASK)}
    for name, weight in named.items():
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ModelError(f"{path}: {name:.100} is no weight.")
    numbers = [re.match(r"transformer\.h\.(\d{1,9})\.", name) for name in named]
    layers = {int(number[1]) for number in numbers if number}
    if len(layers) != layer_count or max(layers) >= layer_count:
        raise ModelError(
            f"{path}: its model_args say n_layer {layer_count}, but it has weights of {len(layers)}."
        )
    head, embedding = named.get("lm_head.weight"), named.get("transformer.wte.weight")
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise ModelError(f"{path}: its lm_head is not tied to its embedding, as that of a GPT-2 is.")
    return {name: sizes[name] for name in SIZES}, named


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
