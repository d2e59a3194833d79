"""Checkpoints as nanoGPT writes them, of random weights, and what its model computes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS, HEADS, WIDTH, CONTEXT = 2, 2, 32, 32


def nanogpt_weights(vocab_size: int, *, bias: bool) -> dict[str, Tensor]:
    """Return a state_dict with nanoGPT's names and shapes; its matrices are (outputs, inputs)."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    weights = {
        "transformer.wte.weight": random(vocab_size, WIDTH),
        "transformer.wpe.weight": random(CONTEXT, WIDTH),
    }
    for layer in range(LAYERS):
        parts = {
            "ln_1": (WIDTH,),
            "attn.c_attn": (3 * WIDTH, WIDTH),
            "attn.c_proj": (WIDTH, WIDTH),
            "ln_2": (WIDTH,),
            "mlp.c_fc": (4 * WIDTH, WIDTH),
            "mlp.c_proj": (WIDTH, 4 * WIDTH),
        }
        for part, shape in parts.items():
            weights[f"transformer.h.{layer}.{part}.weight"] = random(*shape)
            if bias:
                weights[f"transformer.h.{layer}.{part}.bias"] = random(shape[0])
    weights["transformer.ln_f.weight"] = random(WIDTH)
    if bias:
        weights["transformer.ln_f.bias"] = random(WIDTH)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights


def write_checkpoint(path: Path, weights: dict[str, Tensor], *, prefix: str = "", **sizes: Any) -> Path:
    """Write what nanoGPT's train.py saves: weights, optimizer, sizes, progress, settings."""
    model_args = {
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_embd": WIDTH,
        "block_size": CONTEXT,
        "bias": "transformer.ln_f.bias" in weights,
        "vocab_size": len(weights["transformer.wte.weight"]),
        "dropout": 0.0,
    }
    checkpoint = {
        "model": {prefix + name: weight for name, weight in weights.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
        "model_args": model_args | sizes,
        "iter_num": 100,
        "best_val_loss": torch.tensor(3.5),
        "config": {"dataset": "shakespeare", "compile": True},
    }
    torch.save(checkpoint, path)
    return path


def nanogpt_logits(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Return (tokens, vocabulary), computed as nanoGPT's model.py does."""
    count, size = len(ids), WIDTH // HEADS

    def linear(name: str, inputs: Tensor) -> Tensor:
        return F.linear(inputs, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name: str, inputs: Tensor) -> Tensor:
        return F.layer_norm(
            inputs, (WIDTH,), weights[f"{name}.weight"], weights.get(f"{name}.bias"), 1e-5
        )

    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:count]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        parts = linear(f"{block}.attn.c_attn", norm(f"{block}.ln_1", x)).tensor_split(3, dim=1)
        query, key, value = (part.view(count, HEADS, size).transpose(0, 1) for part in parts)
        scores = query @ key.transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(torch.tril(torch.ones(count, count)) == 0, -torch.inf)
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(count, WIDTH)
        x = x + linear(f"{block}.attn.c_proj", mixed)
        inner = linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x))
        # The exact GELU: x times the share of a normal distribution below x.
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + linear(f"{block}.mlp.c_proj", inner)
    return norm("transformer.ln_f", x) @ weights["lm_head.weight"].t()
