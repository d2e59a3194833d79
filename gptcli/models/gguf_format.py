"""GGUF, the format of llama.cpp, written with its own package (https://github.com/ggml-org/llama.cpp).

One file holds weights, tokenizer and chat template. As llama.cpp's converter writes a GPT-2: matrices in
the chosen type with a row an output, position embeddings, norms and biases in float32, and no head where
it is the embedding, which llama.cpp then takes.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gptcli.data.words import cuts_like_gpt2
from gptcli.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from gptcli.models.loading import LoadedModel

TYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "q8_0": "Q8_0"}
"""What it calls the number formats of matrices."""
TAKEN: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
"""Of settings that a GPT-2 may have otherwise, what llama.cpp takes for granted; GPT-2's own first."""


def import_gguf() -> Any:
    """Return the package. Raises ConfigError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise ConfigError('--format gguf needs the package gguf: pip install "gptcli[gguf]".') from None
    return gguf


def check_model(loaded: LoadedModel, precision: str) -> None:
    """Raise ModelError for a tokenizer that llama.cpp would read as another, or rows that do not fit."""
    tokenizer = loaded.tokenizer
    problem = _tokenizer_problem(tokenizer)
    if problem is not None:
        raise ModelError(
            f"{loaded.name}: its tokenizer {problem}, so llama.cpp would make other tokens of a text. "
            "--format huggingface keeps it."
        )
    last = max(tokenizer.get_vocab().values())
    loaded.check_token(last, repr(tokenizer.convert_ids_to_tokens(last)))
    config = loaded.model.config
    gguf = import_gguf()
    # Of a row, so many numbers are stored together.
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[TYPES[precision]]]
    for key, size in (("n_embd", config.n_embd), ("n_inner", config.n_inner or 4 * config.n_embd)):
        if size % block:
            raise ModelError(
                f"{loaded.name}: {key} is {size}; {precision} takes multiples of {block}. "
                "Try --precision bf16."
            )


def _tokenizer_problem(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return what a tokenizer does otherwise than llama.cpp's "gpt-2"; None if there is nothing."""
    backend = tokenizer.backend_tokenizer
    rules = json.loads(backend.to_str())["model"]
    if rules["type"] != "BPE":
        return f"is {rules['type']}, no byte-level BPE"
    if not cuts_like_gpt2(backend):
        return "does not cut a text into words as GPT-2's does"
    if not rules["merges"]:
        return "merges nothing"
    for key in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"):
        if rules.get(key):
            return f"has {key} {json.dumps(rules[key])}"
    for token in backend.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.single_word:
            return f"takes {token.content!r} with the space beside it, or as a whole word alone"
    return None


def write(loaded: LoadedModel, file: Path, name: str, precision: str) -> None:
    """Write a language model that `check_model` accepts, with its tokenizer.

    name: what the file calls the model. precision: of TYPES. Numbers that it cannot hold are none in
    the file, which `likeliest_tokens` finds.
    """
    gguf = import_gguf()
    config = loaded.model.config
    kind = TYPES[precision]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, loaded.tokenizer, config.vocab_size)
    for ours, theirs, is_transposed in _names(loaded.model):
        weight = loaded.model.get_parameter(ours).detach()
        rows = (weight.T if is_transposed else weight).contiguous().numpy()
        is_full = rows.ndim == 1 or ours == "transformer.wpe.weight"
        stored_type = gguf.GGMLQuantizationType["F32" if is_full else kind]
        with np.errstate(over="ignore"):  # It is seen when the file is read back.
            stored = gguf.quants.quantize(rows, stored_type)
        writer.add_tensor(theirs, stored, raw_dtype=stored_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        if error.errno is None:  # As NumPy says that less was written than it had.
            raise OSError(errno.ENOSPC, str(error)) from error
        raise


def _names(model: Any) -> Iterator[tuple[str, str, bool]]:
    """Yield the names of each weight, ours and theirs, and whether a row of ours is of an input."""
    from transformers.pytorch_utils import Conv1D

    gguf = import_gguf()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    for ours, weight in model.named_parameters():  # A tied head is the embedding, and not named again.
        module = model.get_submodule(ours.rpartition(".")[0])
        is_transposed = isinstance(module, Conv1D) and weight.ndim == 2
        yield ours, names.get_name(ours, try_suffixes=(".weight", ".bias")), is_transposed


def _add_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> None:
    gguf = import_gguf()
    backend = tokenizer.backend_tokenizer
    rules = json.loads(backend.to_str())["model"]
    # A vocabulary may have ids that no token has. No two may have the same name there.
    tokens = [f"[unused {number}]" for number in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, number in rules["vocab"].items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for number, token in backend.get_added_tokens_decoder().items():
        tokens[number] = token.content
        types[number] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in rules["merges"]])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_eot_token_id):
        add(tokenizer.eos_token_id)
    # As `gptcli generate` has it: a prompt is what it says, and nothing before it.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def likeliest_tokens(file: Path, loaded: LoadedModel, ids: Sequence[int], precision: str) -> list[int]:
    """Return the id of the token that the weights in the file make likeliest behind each one of a text.

    loaded: the model that was written; it has the numbers of the file afterwards. Raises ModelError if
    some are none.
    """
    gguf = import_gguf()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for ours, theirs, is_transposed in _names(loaded.model):
        tensor = tensors[theirs]
        with np.errstate(invalid="ignore"):
            stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        rows = torch.from_numpy(stored.copy())
        if not rows.isfinite().all():
            raise ModelError(
                f"{loaded.name}: {ours} has numbers that {precision} cannot hold. Try --precision fp32."
            )
        loaded.model.get_parameter(ours).data = rows.T if is_transposed else rows
    with torch.inference_mode():
        found: list[int] = loaded.model(torch.tensor([list(ids)])).logits[0].argmax(-1).tolist()
    return found
