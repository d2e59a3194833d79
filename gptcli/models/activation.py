"""GPT-2's activation function in one kernel."""

from __future__ import annotations

from typing import Any

from torch import nn

# What config.json may call it, and what torch calls its kernel. transformers has modules of its own for
# each, which those who look for nn.GELU (training/compiling.py, models/scoring_forward.py) do not know.
_GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def fused_activation(name: str) -> nn.GELU | None:
    """Return the activation function that config.json calls `name`; None if it has no kernel."""
    approximate = _GELUS.get(name)
    return None if approximate is None else nn.GELU(approximate)


def fuse_activation(model: Any) -> None:
    """Let a GPT-2 compute its activation function, the same one, in one kernel where there is one."""
    for block in model.transformer.h:
        fused = fused_activation(model.config.activation_function)
        if fused is not None:
            block.mlp.act = fused
