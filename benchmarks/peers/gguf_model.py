"""Write a Hugging Face GPT-2 as GGUF, the format of llama.cpp.

    python benchmarks/peers/gguf_model.py MODEL FILE.gguf --type Q8_0

Runs in an environment with the packages gguf and safetensors. As llama.cpp's own converter has it:
matrices in the given type (position embeddings, norms and biases in F32), transposed to rows of outputs,
and the head left out, because it is the embedding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

TYPES = ("F32", "F16", "Q8_0")
# What the parts of a layer are called there, and whether the matrix has a row an input.
LAYER_PARTS = {
    "ln_1": ("attn_norm", False),
    "attn.c_attn": ("attn_qkv", True),
    "attn.c_proj": ("attn_output", True),
    "ln_2": ("ffn_norm", False),
    "mlp.c_fc": ("ffn_up", True),
    "mlp.c_proj": ("ffn_down", True),
}
OTHER_NAMES = {
    "wte.weight": "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}
IN_FULL = "position_embd.weight"


def write_gguf(model: Path, file: Path, type_name: str) -> None:
    """type_name: of TYPES, for the matrices."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(str(file), "gpt2")
    writer.add_name("gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7}[type_name])
    add_tokenizer(writer, model, config["vocab_size"])
    chosen = gguf.GGMLQuantizationType[type_name]
    for name, weight in weights_of(model):
        full = weight.ndim == 1 or name == IN_FULL
        stored = gguf.GGMLQuantizationType.F32 if full else chosen
        writer.add_tensor(name, gguf.quants.quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights_of(model: Path) -> Iterator[tuple[str, Any]]:
    """Yield the weights in float32 by their names there, matrices with a row an output."""
    for name, weight in load_file(model / "model.safetensors").items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if name in OTHER_NAMES:
            yield OTHER_NAMES[name], weight.astype(np.float32)
            continue
        _, layer, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        there, is_transposed = LAYER_PARTS[part]
        weight = weight.astype(np.float32)
        if is_transposed and kind == "weight":
            weight = np.ascontiguousarray(weight.T)
        yield f"blk.{layer}.{there}.{kind}", weight


def add_tokenizer(writer: Any, model: Path, vocab_size: int) -> None:
    facts = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"]: token["id"] for token in facts["added_tokens"]}
    ids = facts["model"]["vocab"] | special
    # A vocabulary may have ids that no token has.
    tokens = [f"[unused {number}]" for number in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, number in ids.items():
        tokens[number] = token
        types[number] = gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in facts["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    end_of_text = json.loads((model / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    writer.add_bos_token_id(end_of_text)
    writer.add_eos_token_id(end_of_text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q8_0")
    options = parser.parse_args()
    write_gguf(options.model, options.file, options.type)


if __name__ == "__main__":
    main()
